"""Procedural circuit boards with defects whose boxes are known exactly.

A board is drawn once into an image strip; the simulated camera pans over strip after strip.
Everything follows from `(seed, number)`, so a frame can be drawn again at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

CLASS_NAMES = ("open", "short", "missing_hole", "scratch", "solder_ball")

# Colours are BGR. Two laminates, so that "green" alone tells a network nothing.
_LAMINATES = (((52, 84, 28), (70, 132, 58)), ((96, 54, 22), (140, 92, 52)))
_PAD = (110, 176, 206)
_HOLE = (18, 20, 22)
_SILK = (208, 214, 212)
_SOLDER = (206, 204, 200)

_PITCH = 24  # pixels between neighbouring traces
_TRACE = 7  # trace width in pixels
_DEFECTS = (5, 9)  # fewest and most defects on a board of the default size


@dataclass(frozen=True)
class Board:
    """One drawn board.

    Attributes:
        image: uint8 (height, width, 3) BGR.
        boxes_xyxy: float32 (n, 4), pixels of `image`.
        class_id: int32 (n,), index into `CLASS_NAMES`.
    """

    image: NDArray[np.uint8]
    boxes_xyxy: NDArray[np.float32]
    class_id: NDArray[np.int32]


@dataclass
class _Sheet:
    """The board while it is being drawn: image, traces as rows of x-ranges, pads, found defects."""

    image: NDArray[np.uint8]
    mask: tuple[int, int, int]
    copper: tuple[int, int, int]
    rng: np.random.Generator
    traces: list[tuple[int, int, int]]  # y, x from, x to
    pads: list[tuple[int, int, int]]  # x, y, radius
    boxes: list[tuple[int, float, float, float, float]]  # class, x1, y1, x2, y2

    def free(self, x1: float, y1: float, x2: float, y2: float) -> bool:
        """Whether a box lies on the board and clear of the defects drawn so far."""
        height, width = self.image.shape[:2]
        inside = x1 >= 2 and y1 >= 2 and x2 <= width - 2 and y2 <= height - 2
        return inside and all(x2 < a - 4 or x1 > c + 4 or y2 < b - 4 or y1 > d + 4 for _, a, b, c, d in self.boxes)


def draw_board(seed: int, number: int, size_wh: tuple[int, int]) -> Board:
    """Draws board `number` of the line `seed`, `size_wh` pixels large."""
    width, height = size_wh
    rng = np.random.default_rng((seed, number, 0xB0A2D))
    mask, copper = _LAMINATES[int(rng.integers(len(_LAMINATES)))]
    sheet = _Sheet(np.full((height, width, 3), mask, np.uint8), mask, copper, rng, [], [], [])
    _draw_traces(sheet)
    _draw_pads(sheet)
    _draw_silk(sheet)
    area = width * height / (384 * 256)
    for _ in range(round(float(rng.integers(*_DEFECTS, endpoint=True)) * area)):
        _draw_defect(sheet)
    texture = rng.normal(0, 4, (height, width, 1))
    image = np.clip(sheet.image + texture, 0, 255).astype(np.uint8)
    found = np.array(sheet.boxes, np.float32).reshape(-1, 5)
    return Board(image, found[:, 1:].copy(), found[:, 0].astype(np.int32))


def _draw_traces(sheet: _Sheet) -> None:
    height, width = sheet.image.shape[:2]
    for y in range(_PITCH, height - _PITCH // 2, _PITCH):
        x = int(sheet.rng.integers(4, 40))
        while x < width - 60:
            end = min(width - 6, x + int(sheet.rng.integers(80, 260)))
            cv2.line(sheet.image, (x, y), (end, y), sheet.copper, _TRACE, cv2.LINE_AA)
            sheet.traces.append((y, x, end))
            x = end + int(sheet.rng.integers(26, 60))


def _draw_pads(sheet: _Sheet) -> None:
    for y, start, end in sheet.traces:
        for x in (start, end):
            radius = int(sheet.rng.integers(7, 10))
            _draw_pad(sheet, x, y, radius, hole=True)
            sheet.pads.append((x, y, radius))


def _draw_pad(sheet: _Sheet, x: int, y: int, radius: int, *, hole: bool) -> None:
    cv2.circle(sheet.image, (x, y), radius, _PAD, -1, cv2.LINE_AA)
    if hole:
        cv2.circle(sheet.image, (x, y), max(2, radius // 2), _HOLE, -1, cv2.LINE_AA)


def _draw_silk(sheet: _Sheet) -> None:
    height, width = sheet.image.shape[:2]
    for _ in range(max(1, width * height // 30000)):
        x, y = int(sheet.rng.integers(0, width - 50)), int(sheet.rng.integers(14, height))
        label = "RCLUQJ"[int(sheet.rng.integers(6))] + str(int(sheet.rng.integers(1, 99)))
        cv2.putText(sheet.image, label, (x, y), cv2.FONT_HERSHEY_PLAIN, 0.9, _SILK, 1, cv2.LINE_AA)


def _draw_defect(sheet: _Sheet) -> None:
    """Tries a few places for one defect; a crowded board simply stays with fewer."""
    class_id = int(sheet.rng.integers(len(CLASS_NAMES)))
    for _ in range(20):
        if _DRAW[class_id](sheet, class_id):
            return


def _keep(sheet: _Sheet, class_id: int, x1: float, y1: float, x2: float, y2: float) -> bool:
    if not sheet.free(x1, y1, x2, y2):
        return False
    sheet.boxes.append((class_id, x1, y1, x2, y2))
    return True


def _draw_open(sheet: _Sheet, class_id: int) -> bool:
    y, start, end = sheet.traces[int(sheet.rng.integers(len(sheet.traces)))]
    gap = int(sheet.rng.integers(9, 16))
    x = int(sheet.rng.integers(start + 16, max(start + 17, end - 16 - gap)))
    if x + gap > end - 14 or not _keep(sheet, class_id, x - 4, y - 8, x + gap + 4, y + 8):
        return False
    cv2.rectangle(sheet.image, (x, y - 5), (x + gap, y + 5), sheet.mask, -1)
    return True


def _draw_short(sheet: _Sheet, class_id: int) -> bool:
    y, start, end = sheet.traces[int(sheet.rng.integers(len(sheet.traces)))]
    x = int(sheet.rng.integers(start + 14, max(start + 15, end - 14)))
    below = any(row == y + _PITCH and a + 12 < x < b - 12 for row, a, b in sheet.traces)
    half = int(sheet.rng.integers(3, 6))
    if not below or not _keep(sheet, class_id, x - half - 4, y - 4, x + half + 4, y + _PITCH + 4):
        return False
    cv2.line(sheet.image, (x, y), (x, y + _PITCH), sheet.copper, 2 * half, cv2.LINE_AA)
    return True


def _draw_missing_hole(sheet: _Sheet, class_id: int) -> bool:
    x, y, radius = sheet.pads[int(sheet.rng.integers(len(sheet.pads)))]
    edge = radius + 2
    if not _keep(sheet, class_id, x - edge, y - edge, x + edge, y + edge):
        return False
    _draw_pad(sheet, x, y, radius, hole=False)
    return True


def _draw_scratch(sheet: _Sheet, class_id: int) -> bool:
    height, width = sheet.image.shape[:2]
    length, angle = float(sheet.rng.uniform(30, 60)), float(sheet.rng.uniform(0.2, 1.35))
    steps = np.linspace(0, length, 6)
    wobble = sheet.rng.normal(0, 1.5, 6)
    flip = 1 if sheet.rng.random() < 0.5 else -1
    x = sheet.rng.uniform(4, width - 4) + steps * np.cos(angle) - wobble * np.sin(angle)
    y = sheet.rng.uniform(4, height - 4) + flip * steps * np.sin(angle) + wobble * np.cos(angle)
    if not _keep(sheet, class_id, x.min() - 2, y.min() - 2, x.max() + 2, y.max() + 2):
        return False
    line = np.stack([x, y], 1).round().astype(np.int32)
    cv2.polylines(sheet.image, [line], False, (196, 206, 212), 2, cv2.LINE_AA)
    return True


def _draw_solder_ball(sheet: _Sheet, class_id: int) -> bool:
    height, width = sheet.image.shape[:2]
    radius = int(sheet.rng.integers(6, 11))
    x, y = int(sheet.rng.integers(radius, width - radius)), int(sheet.rng.integers(radius, height - radius))
    edge = radius + 1
    if not _keep(sheet, class_id, x - edge, y - edge, x + edge, y + edge):
        return False
    cv2.circle(sheet.image, (x, y), radius, (120, 120, 118), -1, cv2.LINE_AA)
    cv2.circle(sheet.image, (x, y), radius - 2, _SOLDER, -1, cv2.LINE_AA)
    cv2.circle(sheet.image, (x - radius // 3, y - radius // 3), max(1, radius // 4), (255, 255, 255), -1, cv2.LINE_AA)
    return True


_DRAW = (_draw_open, _draw_short, _draw_missing_hole, _draw_scratch, _draw_solder_ball)
