"""From the graph's outputs to detections: threshold, class-aware NMS, back to source pixels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.preprocess import Letterbox


@dataclass(frozen=True, slots=True)
class Outputs:
    """What every engine gives for one batch; arrays may be reused by the engine's next call.

    Attributes:
        boxes: float32 (b, k, 4), xyxy in letterbox pixels.
        scores: float32 (b, k), 0 to 1, falling.
        classes: int32 or int64 (b, k).
        embedding: float32 (b, d), L2-normalised.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.integer]
    embedding: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What counts as a detection.

    Attributes:
        confidence: lowest score kept, 0 to 1.
        by_class: lowest score kept of each class id instead; empty when all share `confidence`.
        iou: two boxes of one class that overlap more than this are one, 0 to 1; None for NMS-free heads.
    """

    confidence: float = 0.25
    iou: float | None = 0.7
    by_class: tuple[float, ...] = ()


def detections_from_outputs(outputs: Outputs, row: int, letterbox: Letterbox, thresholds: Thresholds) -> Detections:
    """Parses row `row` of a batch. Works on at most k boxes, so the host's share stays well below a millisecond."""
    kept = np.flatnonzero(outputs.scores[row] >= (min(thresholds.by_class) if thresholds.by_class else thresholds.confidence))
    classes = outputs.classes[row, kept].astype(np.int32)
    if thresholds.by_class:
        sure = outputs.scores[row, kept] >= np.asarray(thresholds.by_class, np.float32)[classes]
        kept, classes = kept[sure], classes[sure]
    boxes, scores = outputs.boxes[row, kept], outputs.scores[row, kept]
    if thresholds.iou is not None and len(kept):
        chosen = _nms(boxes, scores, classes, thresholds.iou)
        boxes, scores, classes = boxes[chosen], scores[chosen], classes[chosen]
    return Detections(letterbox.to_source(boxes), np.clip(scores, 0, 1).astype(np.float32), classes)


def _nms(boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.int32], iou: float) -> NDArray[np.intp]:
    boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    chosen = cv2.dnn.NMSBoxesBatched(boxes_xywh.tolist(), scores.tolist(), classes.tolist(), 0.0, iou)
    order = np.asarray(chosen, np.intp).reshape(-1)
    return order[np.argsort(-scores[order], kind="stable")]
