"""What a detector says before anything is thresholded or chosen: the yardstick for its exported graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class RawPredictions:
    """The original's predictions for one canvas.

    Attributes:
        boxes_xyxy: float32 (n, 4), letterbox pixels.
        scores: float32 (n, classes), 0 to 1.
        complete: whether these are all anchors; False where the original itself gives its best rows only.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    complete: bool = True

    def __post_init__(self) -> None:
        count = len(self.boxes_xyxy)
        if self.boxes_xyxy.shape != (count, 4) or self.scores.ndim != 2 or len(self.scores) != count:
            raise ValueError(f"boxes {self.boxes_xyxy.shape} and scores {self.scores.shape} must be (n, 4) and (n, classes)")


Reference = Callable[[NDArray[np.uint8]], RawPredictions]
"""Gives the original's predictions for a canvas, uint8 (1, h, w, 3) BGR letterboxed."""
