"""A simulated inspection line: boards pass under a camera whose light drifts, with exact ground truth.

The same `(seed, index)` always gives the same picture and the same truth, so a report can draw any frame again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.sources.board import CLASS_NAMES, Board, draw_board

__all__ = ["CLASS_NAMES", "Line", "SimulatedSource"]

BOARD_WIDTH = 384
_VISIBLE = 0.4  # share of a defect that must be in view to count as ground truth
_MIN_SIDE = 5.0  # pixels; slivers at the border are not annotated


@dataclass(frozen=True)
class Line:
    """The line and its camera.

    Attributes:
        seed: which boards.
        size_wh: camera resolution in pixels.
        step: pixels that the belt moves from frame to frame.
        light: 0 as commissioned, 1 fully drifted: darker, warmer, vignetted, noisier.
        light_drift: what `light` grows by per frame, up to 1.
    """

    seed: int = 0
    size_wh: tuple[int, int] = (256, 256)
    step: int = 23
    light: float = 0.0
    light_drift: float = 0.0

    def image(self, index: int) -> NDArray[np.uint8]:
        """Frame `index`: uint8 (h, w, 3) BGR."""
        view = np.concatenate([board.image[:, a:b] for board, a, b, _ in self._parts(index)], axis=1)
        return self._lit(np.ascontiguousarray(view), index)

    def truth(self, index: int) -> Detections:
        """The defects in view of frame `index`, with confidence 1."""
        width, height = self.size_wh
        boxes, classes = [], []
        for board, _, _, shift in self._parts(index):
            moved = board.boxes_xyxy + np.array([shift, 0, shift, 0], np.float32)
            clipped = np.clip(moved, 0, np.array([width, height, width, height], np.float32))
            sides = clipped[:, 2:] - clipped[:, :2]
            share = sides.prod(axis=1) / (moved[:, 2:] - moved[:, :2]).prod(axis=1)
            kept = (share >= _VISIBLE) & (sides.min(axis=1) >= _MIN_SIDE)
            boxes.append(clipped[kept])
            classes.append(board.class_id[kept])
        xyxy, class_id = np.concatenate(boxes), np.concatenate(classes)
        return Detections(xyxy, np.ones(len(xyxy), np.float32), class_id)

    def light_at(self, index: int) -> float:
        """How far the light has drifted, 0 to 1."""
        return float(np.clip(self.light + self.light_drift * index, 0, 1))

    def _parts(self, index: int) -> Iterator[tuple[Board, int, int, int]]:
        """The boards in view: board, first and last column of it, and what to add to its x to get the view's."""
        start, width = index * self.step, self.size_wh[0]
        for number in range(start // BOARD_WIDTH, (start + width - 1) // BOARD_WIDTH + 1):
            origin = number * BOARD_WIDTH
            first, last = max(0, start - origin), min(BOARD_WIDTH, start + width - origin)
            yield _board(self.seed, number, self.size_wh[1]), first, last, origin - start

    def _lit(self, image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
        light = self.light_at(index)
        rng = np.random.default_rng((self.seed, index, 0xCA3E7A))
        gain = (1 - 0.4 * light) * (1 + 0.06 * np.sin(index / 17)) * rng.uniform(0.97, 1.03)
        tint = np.array([1 - 0.3 * light, 1 - 0.1 * light, 1.0], np.float32)
        field = _vignette(self.size_wh)[..., None] * np.float32(light) + np.float32(1 - light)
        noise = rng.normal(0, 2 + 3 * light, image.shape).astype(np.float32)
        return np.asarray(np.clip(image * (tint * np.float32(gain)) * field + noise, 0, 255), np.uint8)


class SimulatedSource:
    """`Line` as a frame source.

    Attributes:
        live: False: the belt can wait, so `fps: max` is allowed.
        fps: the camera's own rate.
    """

    live = False
    fps: float | None = 10.0

    def __init__(self, line: Line, frames: int | None = None, start: int = 0) -> None:
        """Shows frames `start` to `start + frames`; endless when `frames` is None."""
        self.line, self._start, self._frames = line, start, frames

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """Yields the camera's pictures in order."""
        index = self._start
        while self._frames is None or index < self._start + self._frames:
            yield self.line.image(index)
            index += 1

    def interrupt(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing to release."""


@lru_cache(maxsize=16)
def _board(seed: int, number: int, height: int) -> Board:
    return draw_board(seed, number, (BOARD_WIDTH, height))


@lru_cache(maxsize=4)
def _vignette(size_wh: tuple[int, int]) -> NDArray[np.float32]:
    """1 in the centre, 0.67 in the corners."""
    width, height = size_wh
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    radius = cv2.magnitude(np.tile(x, (height, 1)), np.tile(y[:, None], (1, width)))
    return np.asarray(1 - 0.33 * (radius / radius.max()) ** 2, np.float32)
