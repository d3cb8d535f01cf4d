"""What frozen features know, of boxes and of whole images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.errors import DataError
from calibration.labels import load_dataset
from converters.checkpoint import Checkpoint, save_checkpoint
from edge.demo.scene import SimulatedScene
from edge.errors import TrainingError
from edge.probe import ProbeRequest, probe
from edge.yolo import build_detector
from runtime.errors import SourceError


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


def test_probe__whole_images_in_a_folder_for_each_class(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for side, count in (("train", 12), ("val", 5)):
        for name, level in (("dark", 40), ("light", 200)):
            folder = tmp_path / "data" / side / name
            folder.mkdir(parents=True)
            for index in range(count):
                image = np.full((48, 64, 3), level, np.uint8)
                image[:, rng.integers(8) :: 8] = 255 - level if name == "dark" else level
                image = np.clip(image + rng.normal(0, 3, image.shape), 0, 255).astype(np.uint8)
                assert cv2.imwrite(str(folder / f"{index}.png"), image)
    rows = probe(ProbeRequest(tmp_path / "data", (checkpoint,), imgsz=64))
    for row in rows.values():
        assert (row.train, row.val) == (24, 10)
        assert row.linear > 0.7, "fresh filters tell dark stripes from light plains"
    (tmp_path / "data" / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "data" / "train" / "README").touch()
    (tmp_path / "data" / "train" / "dark" / "cut.png").write_bytes(b"")
    assert probe(ProbeRequest(tmp_path / "data", (checkpoint,), imgsz=64))["given weights"].train == 24
    assert capsys.readouterr().err.count("left out: ") == 1
    (tmp_path / "data" / "train" / "dark" / "too.png").write_bytes(b"")
    with pytest.raises(SourceError, match="2 of 26 images are damaged, more than 5 %"):
        probe(ProbeRequest(tmp_path / "data", (checkpoint,), imgsz=64))
    for name in ("cut.png", "too.png"):
        (tmp_path / "data" / "train" / "dark" / name).unlink()
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


def test_probe__classes_that_are_never_learnt(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = SimulatedScene.make(tmp_path / "data", labels=20, seed=0, imgsz=96).data
    dataset = load_dataset(data)
    for item in dataset.val:
        label = item.path.parent.parent / "labels" / f"{item.path.stem}.txt"
        label.write_text("".join(f"4 {line[2:]}\n" for line in label.read_text().splitlines()))
    request = ProbeRequest(data, (checkpoint,), imgsz=64)
    own = {int(number) for item in dataset.train for number in item.class_id}
    for item in dataset.train:
        label = item.path.parent.parent / "labels" / f"{item.path.stem}.txt"
        kept = [line for line in label.read_text().splitlines() if not line.startswith("4")]
        label.write_text("".join(f"{line}\n" for line in kept))
    assert own - {4}
    with pytest.raises(TrainingError, match="shows none of the classes of `val` in `train`"):
        probe(request)
    label = dataset.val[0].path.parent.parent / "labels" / f"{dataset.val[0].path.stem}.txt"
    label.write_text(f"{min(own - {4})} 0.5 0.5 0.5 0.5\n")
    probe(request)
    assert "in `val` are of classes that `train` never shows" in capsys.readouterr().err
