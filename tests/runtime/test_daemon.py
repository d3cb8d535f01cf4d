from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.bundle import Bundle, publish
from runtime.config import EdgeConfig
from runtime.daemon import Daemon
from runtime.errors import BundleError, EdgeloopError, PoolError, SignatureError, SinkError, SourceError
from runtime.pool import Pool
from runtime.signature import sign_bundle
from tests.conftest import ROOT, write_images


def config(bundle: Bundle, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"bundle": str(bundle.path), "threads": 1, "reload_s": 0.1},
        "cameras": {"line": {"source": {"kind": "simulated", "frames": 30, "size_wh": [96, 96]}, "fps": "max"}},
        "sinks": [{"kind": "jsonl", "path": str(tmp_path / "results.jsonl")}],
        **changes,
    }


def run(content: dict[str, Any]) -> dict[str, Any]:
    return Daemon(EdgeConfig.model_validate(content)).run()


def lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]


def test_run__full_speed_loses_nothing(bundle: Bundle, tmp_path: Path) -> None:
    summary = run(config(bundle, tmp_path))
    assert summary["cameras"] == {"line": {"read": 30, "processed": 30, "dropped": {"overload": 0, "shutdown": 0}}}
    records = lines(tmp_path)
    assert [record["frame"] for record in records] == list(range(30))
    assert records[0]["bundle"] == bundle.digest[:16]
    assert any(record["detections"] for record in records)
    box = next(record["detections"][0] for record in records if record["detections"])
    assert box["class"] in bundle.manifest.classes
    assert 0 <= box["xyxy"][0] <= box["xyxy"][2] <= 96


def test_run__a_fast_camera_drops_and_counts(bundle: Bundle, tmp_path: Path) -> None:
    source = {"kind": "simulated", "frames": 400, "size_wh": [64, 64]}
    summary = run(config(bundle, tmp_path, cameras={"fast": {"source": source, "fps": 1000.0}}))
    counts = summary["cameras"]["fast"]
    assert counts["read"] == 400 == counts["processed"] + sum(counts["dropped"].values())
    assert counts["dropped"]["overload"] > 0


def test_run__cameras_take_turns(bundle: Bundle, tmp_path: Path) -> None:
    source = {"kind": "simulated", "frames": 20, "size_wh": [64, 64]}
    cameras = {name: {"source": {**source, "seed": seed}, "fps": "max"} for seed, name in enumerate(("a", "b", "c"))}
    summary = run(config(bundle, tmp_path, cameras=cameras))
    assert {name: counts["processed"] for name, counts in summary["cameras"].items()} == {"a": 20, "b": 20, "c": 20}


def test_run__a_broken_file_ends_its_camera_only(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    paths = write_images(folder, 6)
    paths[3].write_bytes(paths[3].read_bytes()[:500])
    good = {"source": {"kind": "simulated", "frames": 20, "size_wh": [64, 64]}, "fps": "max"}
    bad = {"source": {"kind": "images", "path": str(folder)}, "fps": "max"}
    daemon = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path, cameras={"good": good, "bad": bad})))
    summary: Any = daemon.run()
    assert daemon.failed
    assert summary["cameras"]["good"]["processed"] == 20
    assert summary["cameras"]["bad"] == {"read": 3, "processed": 3, "dropped": {"overload": 0, "shutdown": 0}}


def test_run__collects_by_count_and_by_doubt(bundle: Bundle, tmp_path: Path) -> None:
    collect = {"pool": str(tmp_path / "pool"), "every_n": 10, "below_confidence": 1.0, "min_interval_s": 0.0}
    summary = run(config(bundle, tmp_path, collect=collect))
    with Pool.open(tmp_path / "pool") as pool:
        entries = pool.entries()
    assert summary["collected"] == len(entries) == 30
    assert sum(entry.reason == "every_n" for entry in entries) == 3
    assert {entry.reason for entry in entries} == {"every_n", "low_confidence"}
    assert all(entry.bundle == bundle.digest and entry.embedding is not None for entry in entries)


def test_run__pictures_are_limited(bundle: Bundle, tmp_path: Path) -> None:
    run(config(bundle, tmp_path, sinks=[{"kind": "pictures", "path": str(tmp_path / "p"), "every_n": 5, "limit": 3}]))
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["line-000000.jpg", "line-000005.jpg", "line-000010.jpg"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"model": {"bundle": "nowhere"}}, EdgeloopError),
        ({"cameras": {"a": {"source": {"kind": "images", "path": "nowhere"}}}}, SourceError),
        ({"sinks": [{"kind": "jsonl", "path": "/proc/none/x"}]}, SinkError),
        ({"sinks": [{"kind": "pictures", "path": "/proc/none/x"}]}, SinkError),
        ({"collect": {"pool": "/proc/none/x"}}, PoolError),
    ],
)
def test_run__what_cannot_be_opened_is_told_at_once(
    bundle: Bundle, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        run(config(bundle, tmp_path, **change))
    assert not (tmp_path / "results.jsonl").exists() or not lines(tmp_path)


def changed_bundle(bundle: Bundle, folder: Path, note: str, classes: list[str] | None = None) -> Bundle:
    """The same model under another digest."""
    copied = Path(shutil.copytree(bundle.path, folder))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["lineage"]["note"] = note
    manifest["classes"] = classes or manifest["classes"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(copied)


def test_run__takes_over_a_release_without_losing_a_frame(bundle: Bundle, tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    first = changed_bundle(bundle, bundles / "first", "1")
    publish(bundles, first)
    cameras = {"line": {"source": {"kind": "simulated", "size_wh": [64, 64]}, "fps": "max"}}
    content = config(
        bundle, tmp_path, cameras=cameras, model={"bundle": str(bundles / "current"), "threads": 1, "reload_s": 0.05}
    )
    daemon = Daemon(EdgeConfig.model_validate(content))
    result: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: result.append(daemon.run()))
    thread.start()
    second = changed_bundle(bundle, bundles / "second", "2")
    broken = changed_bundle(bundle, bundles / "broken", "3")
    other = changed_bundle(bundle, bundles / "other", "4", ["x"] * len(bundle.manifest.classes))
    (broken.path / "model.int8.cpu.onnx").write_bytes(b"damaged")
    wait(lambda: (tmp_path / "results.jsonl").exists() and len(lines(tmp_path)) > 5)
    for refused in (broken, other):  # neither may disturb the running model
        publish(bundles, refused)
        time.sleep(0.5)
    publish(bundles, second)
    wait(lambda: lines(tmp_path)[-1]["bundle"] == second.digest[:16])
    daemon.stop()
    thread.join(30)
    assert result[0]["swaps"] == [second.digest[:16]]
    records = lines(tmp_path)
    assert [record["frame"] for record in records] == list(range(len(records)))
    assert {record["bundle"] for record in records} == {first.digest[:16], second.digest[:16]}
    counts = result[0]["cameras"]["line"]
    assert counts["read"] == counts["processed"] + sum(counts["dropped"].values())


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    pytest.importorskip("cryptography", reason="pip install 'edgeloop[sign]'")
    from tests.runtime.test_signature import write_keys

    return write_keys(tmp_path, "release")


def test_run__a_trust_key_lets_only_signed_bundles_in(bundle: Bundle, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    copied = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    content = config(
        bundle, tmp_path, model={"bundle": str(copied), "threads": 1, "trust_key": str(keys[1]), "engine": "onnxruntime"}
    )
    with pytest.raises(SignatureError, match="is not signed"):
        run(content)
    sign_bundle(copied, keys[0])
    assert run(content)["bundle"] == bundle.digest[:16]
    (copied / "model.fp32.onnx").write_bytes(b"no ONNX at all")  # an engine would say so itself
    with pytest.raises(BundleError, match="was altered"):
        run(content)


def test_run__an_unsigned_release_leaves_the_signed_one_running(
    bundle: Bundle, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    bundles = tmp_path / "bundles"
    first, unsigned, second = (changed_bundle(bundle, bundles / name, name) for name in ("first", "unsigned", "second"))
    for signed in (first, second):
        sign_bundle(signed.path, keys[0])
    publish(bundles, first)
    cameras = {"line": {"source": {"kind": "simulated", "size_wh": [64, 64]}, "fps": "max"}}
    model = {"bundle": str(bundles / "current"), "threads": 1, "reload_s": 0.05, "trust_key": str(keys[1])}
    daemon = Daemon(EdgeConfig.model_validate(config(bundle, tmp_path, cameras=cameras, model=model)))
    result: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: result.append(daemon.run()))
    thread.start()
    wait(lambda: (tmp_path / "results.jsonl").exists() and len(lines(tmp_path)) > 5)
    publish(bundles, unsigned)
    wait(lambda: daemon.summary()["bundles_refused"] == 1)
    publish(bundles, second)
    wait(lambda: lines(tmp_path)[-1]["bundle"] == second.digest[:16])
    daemon.stop()
    thread.join(30)
    assert result[0]["swaps"] == [second.digest[:16]]
    assert {record["bundle"] for record in lines(tmp_path)} == {first.digest[:16], second.digest[:16]}


def wait(condition: Any, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_edge_run__ends_cleanly_on_a_signal(bundle: Bundle, tmp_path: Path, number: signal.Signals) -> None:
    cameras = {"line": {"source": {"kind": "simulated", "size_wh": [64, 64]}, "fps": 50.0}}
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump(config(bundle, tmp_path, cameras=cameras)))
    command = [sys.executable, "-m", "edge.cli", "run", "--config", str(tmp_path / "edge.yaml"), "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait(lambda: (tmp_path / "results.jsonl").exists() and len(lines(tmp_path)) > 5)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    counts = json.loads(out)["cameras"]["line"]
    assert counts["read"] == counts["processed"] + sum(counts["dropped"].values())
    assert counts["processed"] == len(lines(tmp_path))
    assert "Traceback" not in err


def test_edge_run__kill_9_leaves_a_pool_that_opens(bundle: Bundle, tmp_path: Path) -> None:
    """Three kills here; benchmarks/kill9.py does fifty."""
    cameras = {"line": {"source": {"kind": "simulated", "size_wh": [96, 96]}, "fps": "max"}}
    collect = {"pool": str(tmp_path / "pool"), "every_n": 1, "quota_mb": 0.2}
    (tmp_path / "edge.yaml").write_text(yaml.safe_dump(config(bundle, tmp_path, cameras=cameras, collect=collect)))
    command = [sys.executable, "-m", "edge.cli", "run", "--config", str(tmp_path / "edge.yaml")]
    for attempt in range(3):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        done = len(lines(tmp_path)) if (tmp_path / "results.jsonl").exists() else 0
        wait(
            lambda before=done: (
                (tmp_path / "results.jsonl").exists() and (tmp_path / "results.jsonl").read_text().count("\n") > before + 20
            )
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with Pool.create(tmp_path / "pool") as pool:
            assert len(pool) > 0, attempt
            assert {file.stem for file in (tmp_path / "pool" / "frames").glob("*/*")} == {
                entry.sha256 for entry in pool.entries()
            }
            assert list(pool.damaged()) == []
        text = (tmp_path / "results.jsonl").read_text()
        (tmp_path / "results.jsonl").write_text(text[: text.rfind("\n") + 1])  # the line that the kill cut
