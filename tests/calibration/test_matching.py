from __future__ import annotations

import numpy as np
import pytest

from calibration.matching import match_boxes
from runtime.detections import Detections
from tests.calibration.test_accuracy import FAR, A, B, boxes


@pytest.mark.parametrize(
    ("ours", "others", "expected"),
    [
        (boxes((A, 0.9, 0)), boxes((FAR, 0.9, 0), (B, 0.8, 0)), [1]),
        (boxes((A, 0.9, 0)), boxes((A, 0.9, 1)), [-1]),  # another class
        (boxes((A, 0.4, 0), (B, 0.9, 0)), boxes((B, 0.9, 0)), [-1, 0]),  # the better scored one chooses first
        (boxes((A, 0.9, 0), (FAR, 0.9, 0)), boxes(), [-1, -1]),
        (boxes(), boxes((A, 0.9, 0)), []),
    ],
)
def test_match_boxes(ours: Detections, others: Detections, expected: list[int]) -> None:
    index, iou = match_boxes(ours, others)
    assert index.tolist() == expected
    np.testing.assert_array_equal(iou > 0, index >= 0)


def test_match_boxes__gives_the_overlap() -> None:
    _, iou = match_boxes(boxes((A, 0.9, 0)), boxes((B, 0.9, 0)))
    assert iou[0] == pytest.approx(38 / 42)
