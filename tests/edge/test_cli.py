from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from runtime.bundle import Bundle
from tests.conftest import fill_pool, write_images

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
    paths = write_images(tmp_path / "images", 3)
    paths[1].write_bytes(paths[1].read_bytes()[:300])
    refused(edge("pool", "add", "pool", "images"), "001.jpg is a truncated JPEG")


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
    ],
)
def test_mistakes__one_sentence_and_exit_code_2(edge: Edge, arguments: tuple[str, ...], expected: str) -> None:
    refused(edge(*arguments), expected)


def test_run__config_problems_are_listed_together(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "edge.yaml").write_text("model: {bundle: b, speed: 1}\ncameras: {a: {source: {kind: images}}}\nmode: x\n")
    refused(
        edge("run", "--config", "edge.yaml"),
        "3 problems",
        "model.speed: unknown key",
        "path: Field required",
        "mode: unknown key",
    )


def test_run__a_video_that_cannot_be_decoded(edge: Edge, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "v.avi").write_bytes(b"RIFF" + bytes(4000))
    config = {"model": {"bundle": str(bundle.path)}, "cameras": {"a": {"source": {"kind": "opencv", "uri": "v.avi"}}}}
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
        "multiple of 32, but got 100; try --imgsz 128",
    )
    refused(edge(checkpoint, "--out", "b3", "--names", "a,b", module="converters.cli"), "name exactly 5")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "pool"]
