"""Frame: one picture of one camera and when it was taken."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Planes:
    """A picture as video decoders give it: YUV 4:2:0, BT.601, 16 to 235; both sides even.

    Most frames are only ever seen letterboxed, or dropped, so turning each into BGR at its full size would cost more than
    all the rest of the pipeline: 2 ms for 1080p on one core.

    Attributes:
        luma: uint8 (h, w).
        u, v: uint8 (h / 2, w / 2).
    """

    luma: NDArray[np.uint8]
    u: NDArray[np.uint8]
    v: NDArray[np.uint8]

    def __post_init__(self) -> None:
        height, width = self.luma.shape
        if height % 2 or width % 2 or not self.u.shape == self.v.shape == (height // 2, width // 2):
            raise ValueError(f"4:2:0 has even sides and chroma of half the size, but got {self.luma.shape} and {self.u.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the BGR picture."""
        return (*self.luma.shape, 3)

    def cropped(self, left: int, top: int, right: int, bottom: int) -> Planes:
        """A part of it, all even, in pixels; a view."""
        half = slice(top // 2, bottom // 2), slice(left // 2, right // 2)
        return Planes(self.luma[top:bottom, left:right], self.u[half], self.v[half])

    def resized(self, size_wh: tuple[int, int]) -> Planes:
        """Another size, both sides even, bilinear."""
        if size_wh == (self.luma.shape[1], self.luma.shape[0]):
            return self
        half = (size_wh[0] // 2, size_wh[1] // 2)
        luma, u, v = (
            np.asarray(cv2.resize(plane, wh, interpolation=cv2.INTER_LINEAR), np.uint8)
            for plane, wh in ((self.luma, size_wh), (self.u, half), (self.v, half))
        )
        return Planes(luma, u, v)

    def bgr(self, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """uint8 (h, w, 3), written into `out` where that is given."""
        height, width = self.luma.shape
        packed = np.empty((height * 3 // 2, width), np.uint8)  # what OpenCV calls I420
        packed[:height] = self.luma
        chroma = packed[height:].reshape(2, height // 2, width // 2)
        chroma[0], chroma[1] = self.u, self.v
        return np.asarray(cv2.cvtColor(packed, cv2.COLOR_YUV2BGR_I420, dst=out), np.uint8)


Picture = NDArray[np.uint8] | Planes  # BGR uint8 (h, w, 3), or what becomes it


@dataclass(frozen=True)
class Frame:
    """One captured image.

    Attributes:
        picture: as the source gave it; owned by the frame, never reused by the source.
        camera: name of the camera in the configuration.
        index: frames captured before this one in the daemon's life, from 0.
        captured_monotonic_s: `time.monotonic()` at capture, for ages.
        captured_wall_s: Unix time at capture, for people.
        epoch: stream epoch, from 0; grows by one each time the source reconnects.
    """

    picture: Picture
    camera: str
    index: int
    captured_monotonic_s: float
    captured_wall_s: float
    epoch: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.picture, Planes):
            return
        if self.picture.dtype != np.uint8 or self.picture.ndim != 3 or self.picture.shape[2] != 3:
            raise ValueError(
                f"image must be uint8 with shape (height, width, 3), but got {self.picture.dtype} {self.picture.shape}"
            )

    @cached_property
    def image(self) -> NDArray[np.uint8]:
        """uint8 (height, width, 3), BGR."""
        return self.picture.bgr() if isinstance(self.picture, Planes) else self.picture

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.picture.shape[1], self.picture.shape[0]
