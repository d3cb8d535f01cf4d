"""Where in the picture to look, what moved there, and which zones a box stands in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections
from runtime.frame import Picture, Planes

_WIDTH = 160  # pixels; a person 100 px wide in a 1080p picture still covers eight of them
_CHANGED = 15  # grey levels: twice the noise of a camera at dusk after the blur
_BLUR = (5, 5)

Region = tuple[float, float, float, float]


def region_of(size_wh: tuple[int, int], region: Region | None) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels of a region given in shares of the picture.

    At even pixels, since video has colour for every second only, but for the picture's own edges; at least two each way
    where the picture has them.
    """
    width, height = size_wh
    if region is None:
        return 0, 0, width, height
    (left, right), (top, bottom) = _even_span(region[0], region[2], width), _even_span(region[1], region[3], height)
    return left, top, right, bottom


def _even_span(begin: float, end: float, length: int) -> tuple[int, int]:
    first = min(round(begin * length / 2) * 2, max(0, (length - 1) // 2 * 2))
    return first, min(max(round(end * length / 2) * 2, first + 2), length)


def cropped(picture: Picture, box_ltrb: tuple[int, int, int, int]) -> Picture:
    """The part of a picture that `region_of` tells; a view."""
    left, top, right, bottom = box_ltrb
    if isinstance(picture, Planes):
        return picture.cropped(left, top, right, bottom)
    return picture[top:bottom, left:right]


class MotionGate:
    """Tells frames on which something moved, by differences to the last frame that was let through.

    Comparing with that frame and not with the one before lets slow things add up until they are seen. A change of the
    whole picture's brightness (a cloud) is taken out by its median.
    """

    def __init__(self, threshold: float, every_s: float) -> None:
        """`threshold` is the share of the picture that must differ; a frame passes every `every_s` seconds whatever moves."""
        self._threshold, self._every_s = threshold, every_s
        self._last: NDArray[np.uint8] | None = None
        self._passed_s = float("-inf")

    def passes(self, picture: Picture, now_s: float) -> bool:
        """Whether to look at a picture that was taken at `now_s` of the monotonic clock."""
        height = max(1, round(_WIDTH * picture.shape[0] / picture.shape[1]))
        whole = picture.luma if isinstance(picture, Planes) else picture
        small = cv2.resize(whole, (_WIDTH, height), interpolation=cv2.INTER_AREA)
        small = small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
        grey = np.asarray(cv2.blur(small, _BLUR), np.uint8)
        if now_s - self._passed_s < self._every_s and not self._moved(grey):
            return False
        self._last, self._passed_s = grey, now_s
        return True

    def _moved(self, grey: NDArray[np.uint8]) -> bool:
        if self._last is None or self._last.shape != grey.shape:
            return True
        change = grey.astype(np.int16) - self._last
        change -= np.int16(np.median(change))
        return float(np.mean(np.abs(change) > _CHANGED)) > self._threshold


def in_zones(
    detections: Detections, zones: Mapping[str, Sequence[tuple[float, float]]], size_wh: tuple[int, int]
) -> dict[str, NDArray[np.bool_]]:
    """For each zone, which detections stand in it: bool (n,).

    A box stands where the middle of its lower edge is, as in Frigate and DeepStream: that is where feet and wheels are.
    """
    width, height = size_wh
    feet = np.column_stack([detections.xyxy[:, [0, 2]].mean(axis=1), detections.xyxy[:, 3]]).astype(np.float32)
    found = {}
    for name, polygon in zones.items():
        corners = (np.asarray(polygon, np.float32) * (width, height)).astype(np.float32)
        inside = [cv2.pointPolygonTest(corners, (float(x), float(y)), False) >= 0 for x, y in feet]
        found[name] = np.asarray(inside, np.bool_)
    return found
