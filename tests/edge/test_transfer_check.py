from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from calibration.labels import load_dataset
from converters.checkpoint import Checkpoint, save_checkpoint
from edge.demo.scene import SimulatedScene
from edge.leaks import same_picture
from edge.transfer_check import CheckRequest, check_transfer, told_apart
from edge.yolo import build_detector
from runtime.images import decode_image, read_image
from runtime.pool import Pool, Seen
from runtime.sources.simulated import Line


def test_told_apart__the_same_and_two_worlds() -> None:
    rng = np.random.default_rng(0)
    first, same, other = (rng.normal(mean, 1, (120, 16)).astype(np.float32) for mean in (0, 0, 3))
    assert told_apart(first, same) < 0.62
    assert told_apart(first, other) > 0.95


@pytest.mark.parametrize("gain", [0.5, 0.8, 1.1])
def test_same_picture__again_in_other_light_and_quality(gain: float) -> None:
    image = (Line(3, (320, 240)).image(10) * 0.9).astype(np.uint8)
    other = cv2.convertScaleAbs(cv2.resize(image, (400, 300)), alpha=gain)
    again = decode_image(cv2.imencode(".jpg", other, [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes(), "again")
    assert same_picture(image, again)


@pytest.mark.parametrize(("side", "levels"), [(20, 60), (24, 40), (40, 30)])
def test_same_picture__one_small_object_more_is_another_picture(side: int, levels: int) -> None:
    """A fixed camera's next frame is all but the same picture."""
    image = Line(3, (640, 480)).image(10)
    for left, top in ((300, 200), (37, 111), (600, 440)):
        other = image.astype(np.int16)
        other[top : top + side, left : left + side] += np.where(
            other[top : top + side, left : left + side] > 128, -levels, levels
        )
        assert not same_picture(image, other.astype(np.uint8))
    assert not same_picture(image, Line(3, (640, 480)).image(60))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data.yaml and a checkpoint."""
    out = tmp_path_factory.mktemp("check")
    data = SimulatedScene.make(out, labels=12, seed=0, imgsz=64).data
    state = build_detector("yolo11n", ["x"], 0).state_dict()
    save_checkpoint(out / "d.pt", Checkpoint("yolo11n", ("x",), state, 64))
    return data, out / "d.pt"


def test_check__leaks_are_named_and_removed(scene: tuple[Path, Path], tmp_path: Path) -> None:
    data, weights = scene
    held_out = load_dataset(data).val
    line = Line(77, (96, 96))
    with Pool.create(tmp_path / "pool") as pool:
        for index in range(12):
            pool.add(line.image(7 * index), Seen("line", float(index), "test"))
        for index, item in enumerate(held_out[:3]):
            pool.add(read_image(item.path), Seen("line", 100.0 + index, "test"))
    request = CheckRequest(tmp_path / "pool", data, (weights,), imgsz=64)
    found = check_transfer(request)
    assert set(found.leaks.values()) >= {item.path.name for item in held_out[:3]}
    assert "--remove" in found.verdict[0]
    assert found.frames == 15
    after = check_transfer(request, remove=True)
    assert after.frames == 15 - len(found.leaks)
    assert not check_transfer(request).leaks


def test_check__images_on_both_sides_are_told(scene: tuple[Path, Path], pool_dir: Path, tmp_path: Path) -> None:
    data, weights = scene
    content = yaml.safe_load(data.read_text())
    both = tmp_path / "data.yaml"
    both.write_text(yaml.safe_dump({**content, "path": str(data.parent), "val": content["train"]}))
    told = check_transfer(CheckRequest(pool_dir, both, (weights,), imgsz=64)).verdict[0]
    assert re.match(r"\d+ held-out images are training images as well: every figure will be too good", told)


def test_check__another_world_is_told(scene: tuple[Path, Path], tmp_path: Path) -> None:
    data, weights = scene
    rng = np.random.default_rng(0)
    with Pool.create(tmp_path / "noise") as pool:
        for index in range(14):
            pool.add(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8), Seen("noise", float(index), "test"))
    found = check_transfer(CheckRequest(tmp_path / "noise", data, (weights,), imgsz=64, reference=tmp_path / "noise"))
    assert found.pool_from_labels > 0.9
    assert found.labels_from_reference
    assert found.labels_from_reference > 0.9
    assert any("something else" in sentence for sentence in found.verdict)
    assert any("expect little" in sentence for sentence in found.verdict), "the reference is the pool itself"
    assert any("few beside" in sentence for sentence in found.verdict)
