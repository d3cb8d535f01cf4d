"""What is added to a result after the model: ids and zones. On the outlet's thread, so it costs inference nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from runtime.config import CameraConfig
from runtime.pipeline import Result
from runtime.regions import in_zones
from runtime.tracking import Tracker


class Annotator:
    """Tracks objects and sorts them into zones, camera by camera.

    Attributes:
        confidence: the lowest threshold of detection; trackers take it over with their next stream epoch.
    """

    def __init__(self, cameras: Mapping[str, CameraConfig], confidence: float) -> None:
        """Serves these cameras.

        Raises:
            MissingPackageError: a camera wants tracking and the library is not installed.
        """
        self.confidence = confidence
        self._trackers: dict[str, Tracker] = {}
        self._cameras: Mapping[str, CameraConfig] = {}
        self.watch(cameras)

    def watch(self, cameras: Mapping[str, CameraConfig]) -> None:
        """Serves these cameras from now on; trackers of cameras that stay keep their ids."""
        self._trackers = {
            name: self._trackers.get(name) or Tracker(self.confidence) for name, camera in cameras.items() if camera.track
        }
        self._cameras = cameras

    def annotate(self, result: Result) -> Result:
        """The result with ids and zones, where its camera wants them."""
        frame, detections = result.frame, result.detections
        camera = self._cameras.get(frame.camera)
        if tracker := self._trackers.get(frame.camera):
            tracker.confidence = self.confidence
            detections = tracker.update(detections, frame.epoch, frame.captured_monotonic_s)
        if camera is None or not (camera.track or camera.zones):
            return result
        zones = in_zones(detections, camera.zones, frame.size_wh)
        return dataclasses.replace(result, detections=detections, zones=zones)
