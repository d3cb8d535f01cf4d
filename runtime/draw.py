"""Drawing boxes on a copy of an image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections

# Okabe-Ito colours in BGR: told apart by colour-blind people too
_COLORS = ((0, 159, 230), (233, 180, 86), (115, 158, 0), (66, 228, 240), (178, 114, 0), (0, 94, 213), (167, 121, 204))


def annotated(image: NDArray[np.uint8], detections: Detections, class_names: Sequence[str]) -> NDArray[np.uint8]:
    """A copy of a BGR image (h, w, 3) with boxes, class names and confidences."""
    canvas: NDArray[np.uint8] = image.copy()
    thick = max(1, round(max(image.shape[:2]) / 500))
    for box, confidence, class_id in zip(detections.xyxy, detections.confidence, detections.class_id, strict=True):
        left, top, right, bottom = (round(float(value)) for value in box)
        color = _COLORS[int(class_id) % len(_COLORS)]
        cv2.rectangle(canvas, (left, top), (right, bottom), color, thick, cv2.LINE_AA)
        _label(canvas, f"{class_names[int(class_id)]} {confidence:.2f}", (left, top), color)
    return canvas


def _label(canvas: NDArray[np.uint8], text: str, corner: tuple[int, int], color: tuple[int, int, int]) -> None:
    scale = max(0.35, max(canvas.shape[:2]) / 2000)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    left = max(0, min(corner[0], canvas.shape[1] - width))
    bottom = max(height + 4, corner[1])
    cv2.rectangle(canvas, (left, bottom - height - 4), (left + width, bottom), color, -1)
    cv2.putText(canvas, text, (left, bottom - 3), cv2.FONT_HERSHEY_SIMPLEX, scale, (0, 0, 0), 1, cv2.LINE_AA)
