"""Detections: what a model found in one frame, as a struct of arrays."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Detections:
    """Boxes of one frame; validated at birth.

    Attributes:
        xyxy: float32 (n, 4), left, top, right, bottom in pixels of the source frame.
        confidence: float32 (n,), 0 to 1.
        class_id: int32 (n,), index into the bundle's class names.
        track_id: int32 (n,), which object it is from frame to frame, -1 where not known yet; None where nobody tracks.
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int32]
    track_id: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        n = len(self.xyxy)
        expected = {"xyxy": ((n, 4), np.float32), "confidence": ((n,), np.float32), "class_id": ((n,), np.int32)}
        if self.track_id is not None:
            expected["track_id"] = ((n,), np.int32)
        for name, (shape, dtype) in expected.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} must be {np.dtype(dtype)} with shape {shape}, but got {array.dtype} {array.shape}")
        if not np.isfinite(self.xyxy).all():
            raise ValueError("xyxy must be finite")
        if n and not (self.confidence.min() >= 0 and self.confidence.max() <= 1):
            raise ValueError(f"confidence must lie in 0 to 1, but spans {self.confidence.min()} to {self.confidence.max()}")

    @classmethod
    def empty(cls) -> Detections:
        """No boxes."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.xyxy)

    def __getitem__(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Detections:
        """Those that the mask or the index array picks."""
        track_id = None if self.track_id is None else self.track_id[index]
        return Detections(self.xyxy[index], self.confidence[index], self.class_id[index], track_id)

    def shifted(self, left: int, top: int) -> Detections:
        """The same boxes in the pixels of a picture that begins `left` and `top` pixels further out."""
        if not (left or top):
            return self
        return dataclasses.replace(self, xyxy=self.xyxy + np.array([left, top, left, top], np.float32))

    def above(self, confidence: float) -> Detections:
        """Those at least this confident."""
        return self[self.confidence >= confidence]


def box_iou(a_xyxy: NDArray[np.float32], b_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Intersection over union of every box of `a` (n, 4) with every box of `b` (m, 4): float32 (n, m), 0 to 1."""
    top_left = np.maximum(a_xyxy[:, None, :2], b_xyxy[None, :, :2])
    bottom_right = np.minimum(a_xyxy[:, None, 2:], b_xyxy[None, :, 2:])
    overlap = np.clip(bottom_right - top_left, 0, None).prod(axis=2)
    area_a = (a_xyxy[:, 2:] - a_xyxy[:, :2]).prod(axis=1)
    area_b = (b_xyxy[:, 2:] - b_xyxy[:, :2]).prod(axis=1)
    union = area_a[:, None] + area_b[None, :] - overlap
    return np.asarray(np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0), np.float32)
