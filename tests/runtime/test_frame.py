from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.frame import Frame, Planes
from runtime.preprocess import Preprocess
from runtime.regions import cropped, region_of
from runtime.sources.simulated import Line
from runtime.sources.video import VideoSource


def planes_of(image: NDArray[np.uint8]) -> Planes:
    height, width = image.shape[:2]
    packed = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420), np.uint8)
    u, v = packed[height:].reshape(2, height // 2, width // 2)
    return Planes(packed[:height], u, v)


def test_frame__planes_become_bgr_once() -> None:
    image = Line(1, (128, 96)).image(0)
    frame = Frame(planes_of(image), "a", 0, 0.0, 0.0)
    assert frame.size_wh == (128, 96)
    assert frame.image is frame.image
    assert np.abs(frame.image.astype(int) - image).mean() < 4  # chroma at half the size


def test_frame__refuses_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match="image must be uint8"):
        Frame(np.zeros((4, 4), np.uint8), "a", 0, 0.0, 0.0)
    with pytest.raises(ValueError, match="4:2:0 has even sides"):
        Planes(np.zeros((5, 4), np.uint8), np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([(64, 64), (320, 192)]), st.integers(0, 5))
def test_letterbox__of_planes_is_that_of_their_bgr(half_w: int, half_h: int, size_wh: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 200, (2, 3, 3), dtype=np.uint8)  # smooth: where colours jump, chroma at half the size differs
    image = np.asarray(cv2.resize(small, (2 * half_w, 2 * half_h), interpolation=cv2.INTER_CUBIC), np.uint8)
    planes = planes_of(image)
    spec = Preprocess(size_wh)
    ours, theirs = spec.buffer(2)
    assert spec.letterbox(planes, ours) == spec.letterbox(planes.bgr(), theirs)
    assert np.abs(ours.astype(int) - theirs).mean() < 6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), *[st.floats(0, 1)] * 4)
def test_cropped__planes_and_bgr_show_the_same_part(w: int, h: int, a: float, b: float, c: float, d: float) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2 * h, 2 * w, 3), dtype=np.uint8)
    planes = planes_of(image)
    box = region_of((2 * w, 2 * h), (min(a, c), min(b, d), max(a, c), max(b, d)))
    part, expected = cropped(planes, box), cropped(planes.bgr(), box)
    assert isinstance(part, Planes)
    assert isinstance(expected, np.ndarray)
    np.testing.assert_array_equal(part.bgr(), expected)


@pytest.mark.data
@pytest.mark.parametrize("name", ["intel_car-detection.mp4", "vtest.avi"])
def test_letterbox__of_real_planes(data_dir: Path, name: str) -> None:
    picture = next(VideoSource(str(data_dir / "videos" / name)).images())
    assert isinstance(picture, Planes)
    spec = Preprocess((640, 640))
    ours, theirs = spec.buffer(2)
    spec.letterbox(picture, ours)
    spec.letterbox(picture.bgr(), theirs)
    assert np.abs(ours.astype(int) - theirs).mean() < 1
