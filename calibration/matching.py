"""Which box of one side is which of the other: the one rule that F1, the gate and the report share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections, box_iou

MATCH_IOU = 0.5  # as F1 and AP50 are commonly counted


def match_boxes(boxes: Detections, others: Detections) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Matches one to one within a class at IoU .50 or more, greedily by falling score of `boxes`.

    Returns:
        For each of `boxes`, its index in `others` or -1, int (n,); and their IoU or 0, float32 (n,).
    """
    index, overlap = np.full(len(boxes), -1, np.intp), np.zeros(len(boxes), np.float32)
    if not len(boxes) or not len(others):
        return index, overlap
    iou = box_iou(boxes.xyxy, others.xyxy) * (boxes.class_id[:, None] == others.class_id[None, :])
    for row in np.argsort(-boxes.confidence, kind="stable"):
        column = int(iou[row].argmax())
        if iou[row, column] >= MATCH_IOU:
            index[row], overlap[row] = column, iou[row, column]
            iou[:, column] = 0  # each is matched once
    return index, overlap
