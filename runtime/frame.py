"""Frame: one picture of one camera and when it was taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured image.

    Attributes:
        image: uint8 (height, width, 3), BGR; owned by the frame, never reused by the source.
        camera: name of the camera in the configuration.
        index: frames captured before this one in the daemon's life, from 0.
        captured_monotonic_s: `time.monotonic()` at capture, for ages.
        captured_wall_s: Unix time at capture, for people.
        epoch: stream epoch, from 0; grows by one each time the source reconnects.
    """

    image: NDArray[np.uint8]
    camera: str
    index: int
    captured_monotonic_s: float
    captured_wall_s: float
    epoch: int = 0

    def __post_init__(self) -> None:
        if self.image.dtype != np.uint8 or self.image.ndim != 3 or self.image.shape[2] != 3:
            raise ValueError(
                f"image must be uint8 with shape (height, width, 3), but got {self.image.dtype} {self.image.shape}"
            )
