from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from runtime.detections import Detections, box_iou

boxes_xyxy = arrays(np.float32, (4, 4), elements=st.floats(0, 100, width=32)).map(
    lambda values: np.sort(values.reshape(4, 2, 2), axis=1).reshape(4, 4)
)


@pytest.mark.parametrize(
    ("xyxy", "confidence", "class_id", "message"),
    [
        (np.zeros((1, 5), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32), "xyxy must be float32 with shape"),
        (np.zeros((1, 4), np.float64), np.zeros(1, np.float32), np.zeros(1, np.int32), "xyxy must be float32"),
        (np.zeros((2, 4), np.float32), np.zeros(1, np.float32), np.zeros(2, np.int32), "confidence must be float32"),
        (np.zeros((1, 4), np.float32), np.zeros(1, np.float32), np.zeros(1, np.int64), "class_id must be int32"),
        (np.full((1, 4), np.nan, np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32), "finite"),
        (np.zeros((1, 4), np.float32), np.full(1, 1.5, np.float32), np.zeros(1, np.int32), "0 to 1"),
    ],
)
def test_detections__refuses_what_is_no_detection(
    xyxy: NDArray[Any], confidence: NDArray[Any], class_id: NDArray[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Detections(xyxy, confidence, class_id)


def test_above__keeps_the_confident_ones() -> None:
    found = Detections(np.zeros((3, 4), np.float32), np.array([0.9, 0.4, 0.5], np.float32), np.arange(3, dtype=np.int32))
    assert found.above(0.5).class_id.tolist() == [0, 2]
    assert len(Detections.empty()) == 0


def test_box_iou__known_values() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
    np.testing.assert_allclose(box_iou(a, b), np.array([[1, 1 / 3, 0], [0, 0, 0]]), atol=1e-6)


@given(boxes_xyxy, boxes_xyxy)
def test_box_iou__symmetric_and_bounded(a: NDArray[Any], b: NDArray[Any]) -> None:
    iou = box_iou(a, b)
    assert (iou >= 0).all()
    assert (iou <= 1 + 1e-5).all()
    np.testing.assert_allclose(iou, box_iou(b, a).T, atol=1e-5)
