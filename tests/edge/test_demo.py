"""The README's `make demo`, for real: some minutes on two cores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.accuracy import Accuracy
from calibration.errors import DataError
from calibration.labels import load_dataset
from converters.convert import convert
from converters.request import ConvertRequest
from edge.demo.camera import LiveDaemon
from edge.demo.loop import DemoRequest, demo
from edge.demo.report import Story, summary_rows
from edge.demo.scene import FolderScene, SimulatedScene
from edge.errors import TrainingError
from edge.refresh.gate import Verdict
from runtime.bundle import Bundle
from runtime.images import list_images
from runtime.pool import Pool
from tests.conftest import few_stretches


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_demo__closes_the_loop(tmp_path: Path) -> None:
    with few_stretches():
        table = demo(DemoRequest(tmp_path / "demo"))
    summary: dict[str, Any] = json.loads((tmp_path / "demo" / "summary.json").read_text())
    for accuracy in summary["arms"].values():
        assert accuracy["map50_95"] > 0.3  # it learned to detect, with and without self-supervision
    assert {row["precision"] for row in summary["parity"]} == {"fp32", "int8"}
    counts = summary["daemon"]["cameras"]["line1"]
    assert counts["read"] == counts["processed"] + sum(counts["dropped"].values())
    assert summary["daemon"]["collected"] > 0
    current = Bundle.open(tmp_path / "demo" / "bundles" / "current")
    assert summary["refresh"]["publish"] == (summary["daemon"]["swaps"] == [current.digest[:16]])
    assert "live F1 in drifted light" in table
    report = (tmp_path / "demo" / "report.html").read_text()
    assert report.count("data:image/jpeg;base64,") >= 2
    assert report.count("<svg") == 2
    with Pool.open(tmp_path / "demo" / "pool") as pool:
        assert {entry.reason for entry in pool.entries()} >= {"commissioning", "every_n"}
    with pytest.raises(DataError, match="is not empty"):
        demo(DemoRequest(tmp_path))


def test_simulated_scene__labels_are_the_truth(tmp_path: Path) -> None:
    scene = SimulatedScene.make(tmp_path, labels=8, seed=0)
    dataset = load_dataset(scene.data)
    assert (len(dataset.train), len(dataset.val)) == (8, 60)
    assert sum(len(item.class_id) for item in dataset.train) > 8
    image, truth = scene.live(30)
    assert image.shape == (192, 192, 3)
    assert len(truth) > 0
    assert scene.live(200)[0].mean() < image.mean()  # the light has drifted


def test_summary__int8_that_was_refused_has_no_file(checkpoint: Path, pool_dir: Path, tmp_path: Path) -> None:
    released = convert(ConvertRequest(checkpoint, pool_dir, frames=8, pictures=False), tmp_path / "bundle", lambda _: None)
    assert {variant.precision for variant in released.manifest.variants} == {"fp32"}
    nothing = Accuracy(0, 0, 0, 0, 0, 0.25, 1)
    age = {"p50_ms": 1.0, "p99_ms": 2.0, "max_ms": 3.0}
    daemon = {
        "cameras": {"a": {"read": 1, "processed": 1, "dropped": {}}},
        "latency": {"age": age},
        "collected": 0,
        "swaps": [],
    }
    story = Story(
        title="", labels=0, names=(), arms={}, released=released, current=released,
        verdict=Verdict(nothing, nothing, publish=False, reason="nothing is proved"), live_f1={}, daemon=daemon, infer_ms=[],
        pictures=[], seconds=0.0,
    )  # fmt: skip
    rows = dict(summary_rows(story))
    assert rows["int8 on openvino"].startswith("not shipped  F1 vs FP32 ")
    assert "refused: only 0 boxes to compare" in rows["int8 on openvino"]
    assert " MB " in rows["fp32 on openvino"]


@pytest.mark.data
@pytest.mark.parametrize(("name", "group", "imgsz"), [("deeppcb", r"^(\d{5})", 320), ("neu_det", r"_(\d+)$", 224)])
def test_folder_scene__real_sets(data_dir: Path, tmp_path: Path, name: str, group: str, imgsz: int) -> None:
    scene = FolderScene.make(data_dir / name, tmp_path, group, labels=40, seed=0)
    dataset = load_dataset(scene.data)
    held_out = {item.path for item in dataset.val}
    assert (len(dataset.train), scene.imgsz) == (40, imgsz)
    assert held_out.isdisjoint(scene.pool_paths)
    assert held_out.isdisjoint(item.path for item in dataset.train)
    assert len(list_images(tmp_path / "live")) == len(held_out)
    image, truth = scene.live(len(held_out) + 3)
    np.testing.assert_array_equal(truth.class_id, dataset.val[3].class_id)
    assert image.shape[0] == image.shape[1]


def test_live_daemon__tells_why_it_ended(tmp_path: Path) -> None:
    config = {"model": {"bundle": "nowhere"}, "cameras": {"a": {"source": {"kind": "simulated", "frames": 1}}}}
    with pytest.raises(TrainingError, match="nowhere is no bundle"), LiveDaemon(tmp_path, config):
        pass
