from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.detections import Detections
from runtime.regions import MotionGate, in_zones, region_of
from runtime.sources.simulated import Line

shares = st.floats(0, 1)


@given(st.integers(1, 4000), st.integers(1, 4000), shares, shares, shares, shares)
def test_region_of__lies_in_the_picture_and_is_not_empty(w: int, h: int, a: float, b: float, c: float, d: float) -> None:
    left, top, right, bottom = region_of((w, h), (min(a, c), min(b, d), max(a, c), max(b, d)))
    assert 0 <= left < right <= max(w, left + 1)
    assert 0 <= top < bottom <= max(h, top + 1)
    assert right <= w
    assert bottom <= h


def test_region_of__none_is_the_whole_picture() -> None:
    assert region_of((640, 480), None) == (0, 0, 640, 480)
    assert region_of((640, 480), (0.5, 0.25, 1, 1)) == (320, 120, 640, 480)


def boxes(*xyxy: tuple[float, float, float, float]) -> Detections:
    count = len(xyxy)
    array = np.asarray(xyxy, np.float32).reshape(count, 4)
    return Detections(array, np.full(count, 0.5, np.float32), np.zeros(count, np.int32))


def test_in_zones__counts_where_the_feet_are() -> None:
    zones: dict[str, list[tuple[float, float]]] = {
        "left": [(0, 0), (0.5, 0), (0.5, 1), (0, 1)],
        "floor": [(0, 0.5), (1, 0.5), (1, 1), (0, 1)],
    }
    found = in_zones(boxes((10, 10, 20, 90), (60, 10, 80, 40), (45, 0, 51, 60)), zones, (100, 100))
    assert found["left"].tolist() == [True, False, True]
    assert found["floor"].tolist() == [True, False, True]
    assert in_zones(boxes(), zones, (100, 100))["left"].shape == (0,)


def moving(kind: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    still = Line(1, (320, 240)).image(0)
    noisy = np.clip(still.astype(int) + rng.normal(0, 4, still.shape), 0, 255).astype(np.uint8)
    if kind == "object":
        noisy[100:140, 200:220] = 255 - noisy[100:140, 200:220]
    if kind == "cloud":
        noisy = np.clip(noisy.astype(int) - 30, 0, 255).astype(np.uint8)
    return still, noisy


@pytest.mark.parametrize(("kind", "passes"), [("noise", False), ("cloud", False), ("object", True)])
def test_motion_gate__sees_objects_not_noise_nor_clouds(kind: str, passes: bool) -> None:
    still, then = moving(kind)
    gate = MotionGate(0.001, every_s=100)
    assert gate.passes(still, 0.0)  # the first frame always
    assert gate.passes(then, 0.1) is passes


def test_motion_gate__looks_every_so_often_and_at_another_size() -> None:
    still, _ = moving("noise")
    gate = MotionGate(0.001, every_s=5)
    assert [gate.passes(still, now_s) for now_s in (0, 1, 4.9, 5.1, 6, 10.2)] == [True, False, False, True, False, True]
    assert gate.passes(np.zeros((480, 320, 3), np.uint8), 10.3)


def test_motion_gate__slow_things_add_up() -> None:
    still, _ = moving("noise")
    gate = MotionGate(0.001, every_s=1000)
    seen = []
    for step in range(40):
        picture = still.copy()
        picture[100:140, 100 + step // 6 : 130 + step // 6] = 255
        seen.append(gate.passes(picture, step / 10))
    assert 3 <= sum(seen) < 40
