"""Where in the picture to look, what moved there, and which zones a box stands in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.detections import Detections

_WIDTH = 160  # pixels; a person 100 px wide in a 1080p picture still covers eight of them
_CHANGED = 15  # grey levels: twice the noise of a camera at dusk after the blur
_BLUR = (5, 5)

Region = tuple[float, float, float, float]


def region_of(size_wh: tuple[int, int], region: Region | None) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels of a region given in shares of the picture; at least a pixel each way."""
    width, height = size_wh
    if region is None:
        return 0, 0, width, height
    left, top = min(round(region[0] * width), width - 1), min(round(region[1] * height), height - 1)
    return left, top, max(round(region[2] * width), left + 1), max(round(region[3] * height), top + 1)


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

    def passes(self, image: NDArray[np.uint8], now_s: float) -> bool:
        """Whether to look at `image`, uint8 (h, w, 3), taken at `now_s` of the monotonic clock."""
        height = max(1, round(_WIDTH * image.shape[0] / image.shape[1]))
        small = cv2.resize(image, (_WIDTH, height), interpolation=cv2.INTER_AREA)
        grey = np.asarray(cv2.blur(cv2.cvtColor(small, cv2.COLOR_BGR2GRAY), _BLUR), np.uint8)
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
