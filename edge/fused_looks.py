"""A detector that looks at an image and its mirror images: slower, and a better teacher.

Weighted boxes fusion (Solovyev et al. 2021, arXiv 1910.13302): boxes of one object are averaged by their confidence, and an
object that only some looks show is less sure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge.pseudo_labels import DOUBT
from edge.torch_detector import DetectBatch
from runtime.detections import Detections, box_iou

_SAME = 0.6  # intersection over union of boxes of one object
_ACROSS, _DOWN = 1, 0  # axes of an image (h, w, 3)


def fused_looks(detect: DetectBatch, *, upright: bool) -> DetectBatch:
    """The detector over an image, its mirror image, and upside down where the scene has no up."""
    axes = [_ACROSS] if upright else [_ACROSS, _DOWN]

    def detect_fused(images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        looks = [[found.above(DOUBT) for found in detect(images)]]
        for axis in axes:
            mirrored = detect([np.ascontiguousarray(np.flip(image, axis)) for image in images])
            looks.append([_back(found.above(DOUBT), image.shape, axis) for found, image in zip(mirrored, images, strict=True)])
        return [fuse(parts) for parts in zip(*looks, strict=True)]

    return detect_fused


def _back(found: Detections, shape: tuple[int, ...], axis: int) -> Detections:
    """Boxes of a mirrored image where they lie in the image."""
    near, far, length = (0, 2, shape[1]) if axis == _ACROSS else (1, 3, shape[0])
    xyxy = found.xyxy.copy()
    xyxy[:, near], xyxy[:, far] = length - found.xyxy[:, far], length - found.xyxy[:, near]
    return Detections(xyxy, found.confidence, found.class_id)


def fuse(looks: Sequence[Detections]) -> Detections:
    """One set of detections from several looks at the same image, most confident first.

    An object has one box at most of each look, the most confident; its confidence is the mean over the looks.
    """
    xyxy = np.concatenate([each.xyxy for each in looks])
    confidence = np.concatenate([each.confidence for each in looks])
    class_id = np.concatenate([each.class_id for each in looks])
    look = np.repeat(np.arange(len(looks)), [len(each) for each in looks])
    overlap = box_iou(xyxy, xyxy)
    order = np.argsort(-confidence, kind="stable")
    left = np.ones(len(xyxy), bool)
    boxes, sure, classes = [], [], []
    for best in order:
        if not left[best]:
            continue
        same = left & (class_id == class_id[best]) & (overlap[best] > _SAME)
        same[best] = True
        left &= ~same
        ranked = order[same[order]]
        _, first = np.unique(look[ranked], return_index=True)
        taken = ranked[first]
        boxes.append(np.average(xyxy[taken], axis=0, weights=confidence[taken]))
        sure.append(float(confidence[taken].sum()) / len(looks))
        classes.append(class_id[best])
    ranks = np.argsort(-np.array(sure), kind="stable")
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4)[ranks], np.array(sure, np.float32)[ranks], np.array(classes, np.int32)[ranks]
    )
