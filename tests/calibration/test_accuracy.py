from __future__ import annotations

import numpy as np
import pytest

from calibration.accuracy import accuracy, coco_map, f1_at, precision_at_recalls
from calibration.errors import DataError
from runtime.detections import Detections

Box = tuple[float, float, float, float]


def boxes(*rows: tuple[Box, float, int]) -> Detections:
    return Detections(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int32),
    )


A, B, FAR = (10.0, 10.0, 50.0, 50.0), (12.0, 10.0, 52.0, 50.0), (200.0, 200.0, 240.0, 240.0)


@pytest.mark.parametrize(
    ("truth", "found", "expected"),
    [
        (boxes((A, 1, 0)), boxes((B, 0.9, 0)), (1.0, 1.0, 1.0)),
        (boxes((A, 1, 0)), boxes((B, 0.9, 1)), (0.0, 0.0, 0.0)),  # another class
        (boxes((A, 1, 0)), boxes((B, 0.9, 0), (A, 0.8, 0)), (0.5, 1.0, 2 / 3)),  # a truth is found once
        (boxes((A, 1, 0), (FAR, 1, 0)), boxes((A, 0.9, 0), (FAR, 0.1, 0)), (1.0, 0.5, 2 / 3)),  # below the threshold
        (boxes(), boxes((A, 0.9, 0)), (0.0, 0.0, 0.0)),
        (boxes((A, 1, 0)), boxes(), (0.0, 0.0, 0.0)),
    ],
)
def test_f1_at(truth: Detections, found: Detections, expected: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(f1_at([(truth, found)], 0.25), expected, atol=1e-9)


def test_coco_map__perfect_and_none() -> None:
    truth = boxes((A, 1, 0), (FAR, 1, 2))
    assert coco_map([(truth, boxes((A, 0.9, 0), (FAR, 0.8, 2)))], ["a", "b", "c"]) == pytest.approx((1.0, 1.0))
    assert coco_map([(truth, Detections.empty())], ["a", "b", "c"]) == (0.0, 0.0)


def test_coco_map__a_shifted_box_passes_some_of_the_ten_thresholds() -> None:
    # IoU of A and B is 38/42 = .905: true at .50 to .90, nine of ten thresholds
    assert coco_map([(boxes((A, 1, 0)), boxes((B, 0.9, 0)))], ["a"]) == pytest.approx((0.9, 1.0))


def test_accuracy__no_images() -> None:
    with pytest.raises(DataError, match="no held-out image"):
        accuracy([], ["a"], 0.25)


@pytest.mark.parametrize(
    ("truth", "found", "expected"),  # precision at recall 0, .5 and 1
    [
        (boxes((A, 1, 0), (FAR, 1, 1)), boxes((A, 0.9, 0), (FAR, 0.8, 1)), (1, 1, 1)),
        (boxes((A, 1, 0), (FAR, 1, 1)), boxes((A, 0.9, 0)), (1, 1, 0)),
        (boxes((A, 1, 0), (FAR, 1, 1)), boxes((B, 0.9, 1), (A, 0.8, 0), (FAR, 0.7, 1)), (2 / 3, 2 / 3, 2 / 3)),
        (boxes((A, 1, 0)), boxes(), (0, 0, 0)),
        (boxes(), boxes((A, 0.9, 0)), (0, 0, 0)),
    ],
)
def test_precision_at_recalls(truth: Detections, found: Detections, expected: tuple[float, float, float]) -> None:
    np.testing.assert_allclose(precision_at_recalls([(truth, found)])[[0, 50, 100]], expected, atol=1e-9)
