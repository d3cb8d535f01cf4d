"""Preprocess: the one letterbox that training evaluation, calibration and the daemon share.

Resizing with another letterbox for calibration than for inference is a classic cause of INT8 collapse
(DeepStream-Yolo#311), so the specification travels in the bundle and this module is its only reading.
Colour order, scale and layout are folded into the graph: the engine takes letterboxed BGR bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.frame import Picture, Planes

PAD_VALUE = 114  # the grey that YOLO models are trained with
STRIDE = 32  # coarsest feature map of the P3-P5 families


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an image came to lie on the canvas.

    Attributes:
        gain: canvas pixels per source pixel.
        left, top: canvas pixels of padding before the image.
        source_wh: width and height of the source image.
    """

    gain: float
    left: int
    top: int
    source_wh: tuple[int, int]

    def to_source(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps boxes (n, 4) from canvas pixels to source pixels, clipped to the source image."""
        offset = np.array([self.left, self.top, self.left, self.top], np.float32)
        limit = np.array([*self.source_wh, *self.source_wh], np.float32)
        return np.asarray(np.clip((boxes_xyxy - offset) / np.float32(self.gain), 0, limit), np.float32)

    def to_canvas(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Maps boxes (n, 4) from source pixels to canvas pixels."""
        offset = np.array([self.left, self.top, self.left, self.top], np.float32)
        return np.asarray(boxes_xyxy * np.float32(self.gain) + offset, np.float32)


@dataclass(frozen=True, slots=True)
class Preprocess:
    """How a camera image becomes the graph's input.

    Attributes:
        size_wh: canvas width and height in pixels, multiples of `stride`.
        pad_value: grey level of the border, 0 to 255.
        stride: coarsest stride of the model.
        color: channel order that the network was trained on; the graph itself takes BGR and reorders inside.
        scale: factor that the graph applies to a byte.
    """

    size_wh: tuple[int, int]
    pad_value: int = PAD_VALUE
    stride: int = STRIDE
    color: str = "rgb"
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        if any(side <= 0 or side % self.stride for side in self.size_wh):
            raise ValueError(f"size_wh must be multiples of {self.stride}, but got {self.size_wh}")
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value must lie in 0 to 255, but got {self.pad_value}")
        if self.color not in ("rgb", "bgr"):
            raise ValueError(f"color must be rgb or bgr, but got {self.color!r}")

    def buffer(self, batch: int = 1) -> NDArray[np.uint8]:
        """A canvas for `batch` images: uint8 (batch, height, width, 3)."""
        width, height = self.size_wh
        return np.full((batch, height, width, 3), self.pad_value, np.uint8)

    def place(self, source_wh: tuple[int, int]) -> tuple[Letterbox, tuple[int, int]]:
        """Where an image of that size comes to lie, and its width and height there in canvas pixels."""
        (source_w, source_h), (width, height) = source_wh, self.size_wh
        gain = min(width / source_w, height / source_h)
        inner_w, inner_h = max(1, round(source_w * gain)), max(1, round(source_h * gain))
        left, top = round((width - inner_w) / 2 - 0.1), round((height - inner_h) / 2 - 0.1)
        return Letterbox(gain, left, top, source_wh), (inner_w, inner_h)

    def letterbox(self, image: Picture, canvas: NDArray[np.uint8]) -> Letterbox:
        """Resizes `image` (h, w, 3) BGR into `canvas` (height, width, 3) in place, keeping its proportions.

        Bilinear, centred, enlarging small images too: the arithmetic of Ultralytics' `LetterBox(auto=False)`. A video's
        planes are resized before they become BGR, which changes pixels by a grey level or two where colours meet.
        """
        source_h, source_w = image.shape[:2]
        letterbox, (inner_w, inner_h) = self.place((source_w, source_h))
        left, top = letterbox.left, letterbox.top
        canvas[:top], canvas[top + inner_h :] = self.pad_value, self.pad_value
        canvas[:, :left], canvas[:, left + inner_w :] = self.pad_value, self.pad_value
        inner = canvas[top : top + inner_h, left : left + inner_w]
        if isinstance(image, Planes):
            if inner_w % 2 == inner_h % 2 == 0:
                image.resized((inner_w, inner_h)).bgr(inner)
                return letterbox
            image = image.bgr()
        if (inner_w, inner_h) == (source_w, source_h):
            inner[:] = image
        else:
            cv2.resize(image, (inner_w, inner_h), dst=inner, interpolation=cv2.INTER_LINEAR)
        return letterbox
