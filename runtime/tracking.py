"""Ids that objects keep from frame to frame: ByteTrack of the `trackers` library (Zhang et al., ECCV 2022)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from runtime.detections import Detections
from runtime.errors import MissingPackageError

_LOST_FRAMES = 30  # of 30 a second, as the library counts: how long an object may be hidden and keep its id


class Tracker:
    """Follows the objects of one camera; a new stream epoch starts anew, with ids that were not used before.

    Attributes:
        confidence: threshold at which a track begins, from the next epoch on.
    """

    def __init__(self, confidence: float) -> None:
        """`confidence` is the threshold of detection; tracks begin there, since what is shown shall have an id.

        Raises:
            MissingPackageError: trackers is not installed.
        """
        try:
            from trackers import ByteTrackTracker  # an extra: it brings scipy and matplotlib
        except ImportError as error:
            raise MissingPackageError("trackers", "track") from error
        self._make = ByteTrackTracker
        self.confidence = confidence
        self._tracker: Any = None
        self._epoch = -1
        self._offset = 0
        self._highest = 0

    def update(self, detections: Detections, epoch: int, captured_monotonic_s: float) -> Detections:
        """The same detections with `track_id`: from 1 up, and -1 for objects that were seen once only.

        Args:
            detections: of one frame.
            epoch: its stream epoch.
            captured_monotonic_s: when it was taken; frames that were dropped in between are thus told.
        """
        if self._tracker is None or epoch != self._epoch:
            self._epoch, self._offset = epoch, self._highest
            self._tracker = self._make(
                lost_track_buffer=_LOST_FRAMES,
                track_activation_threshold=self.confidence,
                high_conf_det_threshold=self.confidence,
            )
        import supervision

        ids = np.full(len(detections), -1, np.int32)
        rows = supervision.Detections(
            xyxy=detections.xyxy.copy(), confidence=detections.confidence, class_id=detections.class_id,
            data={"row": np.arange(len(detections))},
        )  # fmt: skip
        tracked = self._tracker.update(rows, timestamp=captured_monotonic_s)
        if len(tracked) and tracked.tracker_id is not None:
            seen = np.asarray(tracked.tracker_id, np.int32)
            ids[np.asarray(tracked.data["row"], np.intp)] = np.where(seen >= 0, seen + self._offset + 1, -1)
            self._highest = max(self._highest, int(ids.max()))
        return dataclasses.replace(detections, track_id=ids)
