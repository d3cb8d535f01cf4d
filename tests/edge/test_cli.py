from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from edge.demo.scene import SimulatedScene
from runtime.bundle import Bundle
from tests.conftest import ROOT, fill_pool, write_images

Edge = Callable[..., subprocess.CompletedProcess[str]]


def refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    """Exit code 2, one sentence, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    for part in expected:
        assert part in done.stderr


def test_pool__add_info_check_repair(edge: Edge, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 5)
    assert "5 of 5 added" in edge("pool", "add", "pool", "images").stdout
    assert "0 of 5 added, 5 were there" in edge("pool", "add", "pool", "images").stdout
    info = json.loads(edge("pool", "info", "pool", "--json").stdout)
    assert (info["frames"], info["reasons"]) == (5, {"import": 5})
    victim = next((tmp_path / "pool" / "frames").glob("*/*.jpg"))
    victim.write_bytes(victim.read_bytes()[:200])
    refused(edge("pool", "check", "pool"), victim.name)
    assert "1 damaged, removed" in edge("pool", "check", "pool", "--repair").stdout
    assert "4 frames, 0 damaged" in edge("pool", "check", "pool").stdout


def test_pool_add__a_truncated_image_is_named(edge: Edge, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 20)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    (tmp_path / "images" / "folder.jpg").mkdir()
    for name in ("a.gif", "b.gif", "notes"):
        (tmp_path / "images" / name).write_bytes(b"x")
    done = edge("pool", "add", "pool", "images")
    assert "not looked at: 2 .gif, 1 without ending; images end in .jpg, " in done.stderr
    assert "19 of 20 added, 0 were there, 1 damaged; 19 frames" in done.stdout
    assert done.stderr.count("left out: ") == 1
    assert "001.jpg is a truncated JPEG" in done.stderr
    paths[2].write_bytes(b"")
    refused(edge("pool", "add", "other", "images"), "2 of the 20 images are damaged", "001.jpg is a truncated JPEG", "002.jpg")


def test_run_bench_evaluate_doctor(edge: Edge, bundle: Bundle, tmp_path: Path) -> None:
    config = {
        "model": {"bundle": str(bundle.path)},
        "cameras": {"line": {"source": {"kind": "simulated", "frames": 5, "size_wh": [96, 96]}, "fps": "max"}},
        "sinks": [{"kind": "jsonl", "path": "results.jsonl"}],
    }
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump(config))
    done = edge("run", "--config", "edge.yaml")
    assert done.returncode == 0, done.stderr
    assert "camera line: 5 frames read, 5 processed" in done.stdout
    assert "configuration: " in done.stderr
    rows = json.loads(edge("bench", bundle.path, "--runs", "5", "--json").stdout)
    assert len(rows) == 4
    assert all(row["count"] == 5 and row["p50_ms"] <= row["p99_ms"] <= row["max_ms"] for row in rows)
    assert "interleaved" in edge("bench", bundle.path, "--runs", "3").stdout
    data = SimulatedScene.make(tmp_path / "data", labels=8, seed=0, imgsz=64).data
    accuracy = json.loads(edge("evaluate", bundle.path, "--data", data, "--json").stdout)
    assert accuracy["images"] == 60
    assert "F1" in edge("evaluate", bundle.path, "--data", data, "--engine", "onnxruntime", "--precision", "fp32").stdout
    found = {item["what"]: item for item in json.loads(edge("doctor", "--json").stdout)}
    assert found["numpy"]["state"] == "ok"
    assert "cores usable" in found["cpu"]["detail"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "--config", "none.yaml"), "none.yaml cannot be read"),
        (("bench", "nowhere"), "nowhere is no bundle"),
        (("pool", "info", "nowhere"), "nowhere is no pool"),
        (("pool", "add", "pool", "nowhere"), "nowhere is no folder"),
        (("pretrain", "--pool", "nowhere", "--out", "run"), "nowhere is no pool"),
        (("finetune", "--data", "none.yaml", "--out", "run"), "none.yaml cannot be read"),
        (("split", "nowhere", "--out", "split"), "data.yaml cannot be read"),
        (("evaluate", "nowhere", "--data", "none.yaml"), "none.yaml cannot be read"),
        (("demo", "--data", "nowhere"), "data.yaml cannot be read"),
        (("embed", "--pool", "nowhere", "--plot", "."), "'.' is a directory"),
        (("evaluate", "nowhere", "--data", "none.yaml", "--report", "."), "'.' is a directory"),
    ],
)
def test_mistakes__one_sentence_and_exit_code_2(edge: Edge, arguments: tuple[str, ...], expected: str) -> None:
    refused(edge(*arguments), expected)


def test_split__what_was_asked_for_and_is_not_there_is_told(edge: Edge, tmp_path: Path) -> None:
    folder = tmp_path / "flat"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for index, path in enumerate(write_images(tmp_path / "drawn", 8)):
        name = f"{'ab'[index % 2]}_{index}"
        path.rename(folder / "images" / f"{name}.jpg")
        (folder / "labels" / f"{name}.txt").write_text(f"{index % 2} 0.5 0.5 0.2 0.2\n")
    (folder / "data.yaml").write_text("names: [first, second]\n")
    by_class = edge("split", "flat", "--out", "split", "--group", "^([ab])", "--labels", "100")
    assert by_class.returncode == 0
    assert "--labels 100 is more than there are: all 4 keep theirs" in by_class.stderr
    assert "held out, but never trained on: " in by_class.stderr
    assert not edge("split", "flat", "--out", "other", "--labels", "6").stderr


def test_pool_add__a_full_pool_says_what_was_added(edge: Edge, tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", 6)
    room = sum(path.stat().st_size for path in paths[:3]) * 1.01e-6
    refused(edge("pool", "add", "pool", "images", "--quota-mb", f"{room:.6f}"), "is full", "3 of 6 were added and stay")


def test_run__config_problems_are_listed_together(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "edge.yaml").write_text("model: {bundle: b, speed: 1}\ncameras: {a: {source: {kind: images}}}\nmode: x\n")
    refused(
        edge("run", "--config", "edge.yaml"),
        "3 problems",
        "model.speed: unknown key",
        "path: is missing",
        "mode: unknown key",
    )


def test_run__a_video_that_cannot_be_decoded(edge: Edge, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "v.avi").write_bytes(b"RIFF" + bytes(4000))
    config = {"model": {"bundle": str(bundle.path)}, "cameras": {"a": {"source": {"kind": "video", "uri": "v.avi"}}}}
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump(config))
    refused(edge("run", "--config", "edge.yaml"), "v.avi cannot be opened as video")


def test_run__an_altered_bundle(edge: Edge, bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "b")
    (tmp_path / "b" / "model.fp32.onnx").write_bytes(b"x")
    config = {"model": {"bundle": "b"}, "cameras": {"a": {"source": {"kind": "simulated", "frames": 1}}}}
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump(config))
    refused(edge("run", "--config", "edge.yaml"), "model.fp32.onnx was altered")


def test_edge_convert__writes_a_bundle_and_refuses_mistakes(edge: Edge, checkpoint: Path, tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 8)
    done = edge(checkpoint, "--pool", "pool", "--out", "bundle", "--frames", "4", module="converters.cli")
    assert done.returncode == 0, done.stderr
    assert "preferred: " in done.stderr
    assert Bundle.open(tmp_path / "bundle").digest[:16] in done.stdout
    refused(edge(checkpoint, "--out", "bundle", module="converters.cli"), "bundle exists already")
    refused(edge("none.pt", "--out", "b2", module="converters.cli"), "no such checkpoint: none.pt")
    refused(edge(checkpoint, module="converters.cli"), "--out BUNDLE and --release BUNDLES")
    refused(
        edge(checkpoint, "--out", "b3", "--imgsz", "100", module="converters.cli"),
        "multiple of 32 up to 8192, but got 100; try --imgsz 128",
    )
    refused(edge(checkpoint, "--out", "b3", "--names", "a,b", module="converters.cli"), "name exactly 5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "pool"]


@pytest.mark.slow
def test_readme__the_way_with_own_labels(edge: Edge, tmp_path: Path) -> None:
    """The README's commands from a labelled folder to a refreshed release, small."""
    scene = SimulatedScene.make(tmp_path / "drawn", labels=12, seed=0, imgsz=64)
    (tmp_path / "drawn" / "train" / "data.yaml").write_text(yaml.safe_dump({"names": list(scene.names)}))
    small = ("--imgsz", 64, "--batch", 4, "--epochs", 1)
    train = ("finetune", "--data", "data/data.yaml", "--out", "tuned", "--init", "ssl/localizer.pt", *small)
    commands = (
        ("split", "drawn/train", "--out", "data", "--group", r"^(\d+)", "--labels", 8),
        ("pool", "add", "pool", "drawn/train/images"),
        ("pretrain", "--pool", "pool", "--out", "ssl", *small),
        train,
        (*train[:-2], "--epochs", 1, "--resume"),
    )
    for command in commands:
        done = edge(*command)
        assert done.returncode == 0, done.stderr
    taught = (*train[:4], "taught", "--pool", "pool", "--teacher", "tuned/detector.pt", *small)
    done = edge(*taught)
    assert done.returncode == 0, done.stderr
    assert "the teacher believes" in done.stderr
    assert "421 of 421 tensors" in edge(*train[:4], "again", *train[5:]).stderr
    converted = edge("tuned/detector.pt", "--pool", "pool", "--release", "bundles", "--frames", 4, module="converters.cli")
    assert converted.returncode == 0, converted.stderr
    assert Bundle.open(tmp_path / "bundles" / "current").manifest.accuracy["images"] > 0
    flags = ("--bundles", "bundles", "--pool", "pool", "--data", "data/data.yaml", "--backbone", "ssl/localizer.pt")
    budget = ("--pretrain-epochs", 1, "--tune-epochs", 1, "--batch", 4)
    done = edge("refresh", *flags, "--detector", "tuned/detector.pt", "--out", "refresh", *budget)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(("published: not worse", "kept the released model"))


@pytest.mark.slow
@pytest.mark.data
def test_readme__coco_weights_to_int8_on_a_video(edge: Edge, data_dir: Path, tmp_path: Path) -> None:
    """The README's real example: people are found, every frame is accounted for."""
    weights = data_dir / "weights" / "yolo11n_coco_dequant_state_fp16.pt"
    assert edge("pool", "add", "work/example/pool", data_dir / "coco_train2017" / "images").returncode == 0
    done = edge(
        weights, "--pool", "work/example/pool", "--out", "work/example/yolo11n", "--frames", 16, "--gate-frames", 24,
        module="converters.cli",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load((ROOT / "examples" / "vtest.yaml").read_text())
    config["cameras"]["vtest"]["source"]["uri"] = str(data_dir / "videos" / "vtest.avi")
    config["model"]["engine"] = "openvino"
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump(config))
    summary = json.loads(edge("run", "--config", "edge.yaml", "--json").stdout)
    assert summary["cameras"]["vtest"] == {"read": 795, "processed": 795, "dropped": {"overload": 0, "shutdown": 0}}
    rows = [json.loads(line) for line in (tmp_path / "work/example/results.jsonl").read_text().splitlines()]
    people = sum(found["class"] == "person" and found["confidence"] > 0.4 for row in rows for found in row["detections"])
    assert people / len(rows) >= 5
    assert len(list((tmp_path / "work/example/pictures").iterdir())) == 8
