"""What frozen features know, of boxes and of whole images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.errors import DataError
from converters.checkpoint import Checkpoint, save_checkpoint
from edge.demo.scene import SimulatedScene
from edge.errors import TrainingError
from edge.probe import ProbeRequest, probe
from edge.yolo import build_detector


def test_probe__classes_that_look_different_are_told_apart(tmp_path: Path) -> None:
    data = SimulatedScene.make(tmp_path / "data", labels=40, seed=0, imgsz=192).data
    detector = build_detector("yolo11n", ["x"], 3)
    save_checkpoint(tmp_path / "d.pt", Checkpoint("yolo11n", ("x",), detector.state_dict(), 64))
    rows = probe(ProbeRequest(data, (tmp_path / "d.pt",), imgsz=64, part="neck"))
    assert set(rows) == {"fresh weights", "given weights"}
    for row in rows.values():
        assert row.val > 4
        assert 0 <= row.linear_interval[0] <= row.linear <= row.linear_interval[1] <= 1
    assert max(row.linear for row in rows.values()) > 0.4, "three shapes that even fresh filters tell apart"


def test_probe__whole_images_in_a_folder_for_each_class(tmp_path: Path, checkpoint: Path) -> None:
    rng = np.random.default_rng(0)
    for side, count in (("train", 12), ("val", 5)):
        for name, level in (("dark", 40), ("light", 200)):
            folder = tmp_path / "data" / side / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = np.clip(rng.normal(level, 10, (48, 64, 3)), 0, 255).astype(np.uint8)
                assert cv2.imwrite(str(folder / f"{index}.png"), image)
    rows = probe(ProbeRequest(tmp_path / "data", (checkpoint,), imgsz=64))
    for row in rows.values():
        assert (row.train, row.val) == (24, 10)
        assert row.linear > 0.7, "fresh filters tell dark from light"
    (tmp_path / "data" / "val" / "grey").mkdir()
    with pytest.raises(DataError, match="no train/CLASS/ folders, or others in val; a probe takes these, or a data"):
        probe(ProbeRequest(tmp_path / "data", (checkpoint,), imgsz=64))
    with pytest.raises(DataError, match="no train/CLASS/ folders"):
        probe(ProbeRequest(tmp_path, (checkpoint,), imgsz=64))
    one = tmp_path / "one"
    for side in ("train", "val"):
        (one / side).mkdir(parents=True)
        (tmp_path / "data" / side / "dark").rename(one / side / "dark")
    with pytest.raises(TrainingError, match="shows no two classes"):
        probe(ProbeRequest(one, (checkpoint,), imgsz=64))
