from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.detections import box_iou
from runtime.postprocess import Outputs, Thresholds, detections_from_outputs
from runtime.preprocess import Letterbox

IDENTITY = Letterbox(1.0, 0, 0, (100, 100))


def outputs(boxes: Any, scores: list[float], classes: list[int]) -> Outputs:
    return Outputs(
        np.array([boxes], np.float32),
        np.array([scores], np.float32),
        np.array([classes], np.int64),
        np.zeros((1, 1), np.float32),
    )


def test_detections_from_outputs__suppresses_within_a_class_only() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 9.5], [50, 50, 60, 60]]
    found = detections_from_outputs(outputs(boxes, [0.9, 0.8, 0.7, 0.1], [0, 1, 0, 0]), 0, IDENTITY, Thresholds(0.25, 0.7))
    assert found.class_id.tolist() == [0, 1]
    np.testing.assert_allclose(found.confidence, [0.9, 0.8])


def test_detections_from_outputs__end_to_end_heads_skip_nms() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10]]
    assert len(detections_from_outputs(outputs(boxes, [0.9, 0.8], [0, 0]), 0, IDENTITY, Thresholds(0.25, None))) == 2


def test_detections_from_outputs__nothing_above_the_threshold() -> None:
    assert len(detections_from_outputs(outputs([[0, 0, 1, 1]], [0.1], [0]), 0, IDENTITY, Thresholds())) == 0


def test_detections_from_outputs__agrees_with_torchvision() -> None:
    import torch
    from torchvision.ops import batched_nms

    rng = np.random.default_rng(1)
    corner, size = rng.uniform(0, 60, (200, 2)), rng.uniform(5, 40, (200, 2))
    boxes = np.clip(np.hstack([corner, corner + size]), 0, 100).astype(np.float32)
    scores, classes = rng.random(200).astype(np.float32), rng.integers(0, 3, 200)
    ours = detections_from_outputs(
        Outputs(boxes[None], scores[None], classes[None], np.zeros((1, 1), np.float32)), 0, IDENTITY, Thresholds(0.0, 0.5)
    )
    theirs = batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(classes), 0.5).numpy()
    np.testing.assert_allclose(ours.confidence, scores[theirs])
    np.testing.assert_allclose(ours.xyxy, boxes[theirs], atol=1e-3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.1, 0.9))
def test_detections_from_outputs__no_two_boxes_of_a_class_overlap(seed: int, iou: float) -> None:
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (40, 2)), rng.uniform(1, 40, (40, 2))
    boxes = np.hstack([corner, corner + size]).astype(np.float32)
    found = detections_from_outputs(
        Outputs(boxes[None], rng.random((1, 40)).astype(np.float32), rng.integers(0, 2, (1, 40)), np.zeros((1, 1), np.float32)),
        0, Letterbox(1.0, 0, 0, (200, 200)), Thresholds(0.1, iou),
    )  # fmt: skip
    overlap = box_iou(found.xyxy, found.xyxy) * (found.class_id[:, None] == found.class_id[None, :])
    np.fill_diagonal(overlap, 0)
    assert overlap.max(initial=0) <= iou + 1e-4
    assert (np.diff(found.confidence) <= 0).all()
