"""What became of every frame: for each camera, read = processed + dropped, whatever happened."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from runtime.capture import Capture
from runtime.metrics import Durations
from runtime.pipeline import Result

STAGES = ("preprocess", "infer", "postprocess", "age")


class Ledger:
    """Counts of the daemon's life; cameras that were taken out of the configuration stay in it.

    Attributes:
        processed: frames with a result, by camera.
        detections: boxes in all of them.
        durations: the latest times of each stage, seconds.
    """

    def __init__(self) -> None:
        self.processed: Counter[str] = Counter()
        self.detections = 0
        self.durations = {stage: Durations() for stage in STAGES}
        self._dropped: dict[str, Counter[str]] = {}
        self._gone: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, result: Result) -> None:
        """A frame went through the model."""
        values = (result.preprocess_s, result.infer_s, result.postprocess_s, result.age_s)
        for stage, value_s in zip(STAGES, values, strict=True):
            self.durations[stage].add(value_s)
        self.processed[result.frame.camera] += 1
        self.detections += len(result.detections)

    def drop(self, camera: str, reason: str, count: int = 1) -> None:
        """Frames ended otherwise."""
        with self._lock:
            self._dropped.setdefault(camera, Counter())[reason] += count

    def retire(self, captures: Iterable[Capture]) -> None:
        """Keeps the counts of cameras that are about to be forgotten; what waits in them is dropped as `shutdown`."""
        for capture in captures:
            while capture.queue.get(timeout_s=0) is not None:
                self.drop(capture.name, "shutdown")
            self.drop(capture.name, "overload", capture.queue.dropped)
            for reason, count in dict(capture.dropped).items():
                self.drop(capture.name, reason, count)
            self._gone[capture.name] = self._gone.get(capture.name, 0) + capture.read
            self._epochs[capture.name] = capture.epoch

    def last_epoch(self, camera: str) -> int:
        """The stream epoch in which a camera was taken out; -1 where it never was."""
        return self._epochs.get(camera, -1)

    def read(self, camera: str, capture: Capture | None) -> int:
        """Frames that a camera gave."""
        return self._gone.get(camera, 0) + (capture.read if capture else 0)

    def dropped(self, camera: str, capture: Capture | None, gated: Mapping[str, int]) -> dict[str, int]:
        """Frames of a camera that no model looked at, by reason; `gated` are those that the scheduler left out."""
        with self._lock:
            found = Counter(self._dropped.get(camera, {}))
        found.update(dict(gated))  # copies: other threads count on
        if capture:
            found.update(dict(capture.dropped))
            found["overload"] += capture.queue.dropped
        return {"overload": 0, "shutdown": 0, **{reason: count for reason, count in found.items() if count}}

    def cameras(self) -> list[str]:
        """Cameras that were taken out."""
        return list(self._gone)
