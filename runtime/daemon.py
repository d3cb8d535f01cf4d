"""The daemon: startup / main loop / tick / shutdown."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from runtime.capture import Capture
from runtime.collector import Collector
from runtime.config import FPS_MAX, EdgeConfig
from runtime.errors import SinkError
from runtime.frame import Frame
from runtime.metrics import Durations, peak_resident_bytes, resident_bytes
from runtime.outlet import Outlet
from runtime.pipeline import Pipeline, Result
from runtime.sinks import Sink, open_sink
from runtime.swap import BundleWatcher, load_pipeline

log = logging.getLogger(__name__)

_TICK_S = 0.2  # how long a stop request may wait while no frame comes
_REPORT_S = 60.0
_STAGES = ("preprocess", "infer", "postprocess", "age")


class Daemon:
    """Runs the cameras of one device through one model until they end or it is told to stop."""

    def __init__(self, config: EdgeConfig) -> None:
        self._config = config
        self._should_exit = threading.Event()
        self._changed = threading.Event()
        self._durations = {stage: Durations() for stage in _STAGES}
        self._processed: dict[str, int] = dict.fromkeys(config.cameras, 0)
        self._left: dict[str, int] = dict.fromkeys(config.cameras, 0)
        self._detections = 0
        self._swaps: list[str] = []
        self._started_s = time.monotonic()
        self._turn = 0
        self._first_frame_s: float | None = None
        self._elapsed_s: float | None = None
        self._resident_bytes = 0

    def run(self) -> dict[str, object]:
        """Starts, runs and stops; returns the summary that `edge run` prints.

        Raises:
            EdgeloopError: something in the configuration cannot be opened; nothing was processed.
        """
        self._startup()
        try:
            with self._signals():
                self._main_loop()
        finally:
            self._shutdown()
        if self._outlet.error is not None:
            raise SinkError(
                f"the sinks failed ({self._outlet.error!r}) and the daemon ended; please report this"
            ) from self._outlet.error
        return self.summary()

    def stop(self) -> None:
        """Asks the main loop to end after the current frame."""
        self._should_exit.set()
        self._changed.set()

    def _startup(self) -> None:
        config = self._config
        # Cheap things that can be wrong come first, so that a wrong path is told in milliseconds.
        self._captures = [Capture(name, camera, self._changed) for name, camera in config.cameras.items()]
        self._pipeline = load_pipeline(config.model)
        classes = self._pipeline.bundle.manifest.classes
        self._collector = Collector(config.collect) if config.collect else None
        sinks: list[Sink] = [open_sink(sink, classes) for sink in config.sinks]
        lossless = all(camera.fps == FPS_MAX for camera in config.cameras.values())
        self._outlet = Outlet([*sinks, self._collector] if self._collector else sinks, lossless=lossless)
        self._watcher = BundleWatcher(config.model, self._pipeline)
        for capture in self._captures:
            capture.start()
        self._outlet.start()
        self._watcher.start()
        self._started_s = time.monotonic()
        backend = self._pipeline.backend
        log.info("running bundle %s, %s on %s", self._pipeline.bundle.digest[:16], backend.precision, backend.engine)

    def _main_loop(self) -> None:
        reported_s = time.monotonic()
        while not self._should_exit.is_set():
            frame = self._next_frame()
            if frame is not None:
                self._tick(frame)
            elif all(capture.finished for capture in self._captures):
                return
            if time.monotonic() - reported_s >= _REPORT_S:
                reported_s = time.monotonic()
                log.info("%s", self.summary())

    def _tick(self, frame: Frame) -> None:
        result = self._pipeline.process(frame)
        self._count(result)
        if not self._outlet.put(result):
            self.stop()
        if new := self._watcher.take():
            self._swap(new)

    def _next_frame(self) -> Frame | None:
        """A waiting frame, the cameras taking turns; None when none comes within a tick."""
        self._changed.clear()
        for offset in range(len(self._captures)):
            capture = self._captures[(self._turn + offset) % len(self._captures)]
            if (frame := capture.queue.get(timeout_s=0)) is not None:
                self._turn += offset + 1
                return frame
        self._changed.wait(_TICK_S)
        return None

    def _count(self, result: Result) -> None:
        values = (result.preprocess_s, result.infer_s, result.postprocess_s, result.age_s)
        for stage, value_s in zip(_STAGES, values, strict=True):
            self._durations[stage].add(value_s)
        if not any(self._processed.values()):
            self._first_frame_s = time.time() - _process_began_s()
            log.info("first frame done, %.2f s after the process began", self._first_frame_s)
        self._processed[result.frame.camera] += 1
        self._detections += len(result.detections)

    def _swap(self, new: Pipeline) -> None:
        old, self._pipeline = self._pipeline, new
        old.close()
        self._swaps.append(new.bundle.digest)
        log.info("took over bundle %s", new.bundle.digest[:16])

    def _shutdown(self) -> None:
        for capture in self._captures:
            capture.stop()
            while capture.queue.get(timeout_s=0) is not None:
                self._left[capture.name] += 1
            if capture.error is not None:
                log.error("camera %s stopped: %s", capture.name, capture.error)
        self._watcher.stop()
        self._outlet.close()
        self._elapsed_s = time.monotonic() - self._started_s
        self._resident_bytes = resident_bytes()  # with the model loaded, as it ran
        self._pipeline.close()

    @property
    def failed(self) -> bool:
        """Whether a camera stopped because its source was broken, or results were lost because a sink failed."""
        lost = self._outlet.failed + (self._collector.failed if self._collector else 0)
        return lost > 0 or any(capture.error is not None for capture in self._captures)

    def summary(self) -> dict[str, object]:
        """Counts and latencies so far. For every camera, read = processed + dropped, whatever happened."""
        elapsed_s = time.monotonic() - self._started_s if self._elapsed_s is None else self._elapsed_s
        processed = sum(self._processed.values())
        return {
            "cameras": {
                capture.name: {
                    "read": capture.read,
                    "processed": self._processed[capture.name],
                    "dropped": {"overload": capture.queue.dropped, "shutdown": self._left[capture.name]},
                }
                for capture in self._captures
            },
            "elapsed_s": round(elapsed_s, 3),
            "frames_per_s": round(processed / max(elapsed_s, 1e-9), 2),
            "detections": self._detections,
            "latency": {stage: durations.summary().as_dict() for stage, durations in self._durations.items()},
            "resident_mb": round((self._resident_bytes or resident_bytes()) / 1e6, 1),
            "peak_resident_mb": round(peak_resident_bytes() / 1e6, 1),
            "first_frame_s": None if self._first_frame_s is None else round(self._first_frame_s, 3),
            "collected": self._collector.kept if self._collector else 0,
            "not_collected": self._collector.failed if self._collector else 0,
            "sink_results_dropped": self._outlet.dropped,
            "sink_results_failed": self._outlet.failed,
            "bundles_refused": self._watcher.failed,
            "swaps": [digest[:16] for digest in self._swaps],
            "bundle": self._pipeline.bundle.digest[:16],
            "engine": self._pipeline.backend.engine,
            "precision": self._pipeline.backend.precision,
        }

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a clean end; a second one ends at once. Nothing to install off the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _: FrameType | None) -> None:
            if self._should_exit.is_set():
                os._exit(128 + number)
            self.stop()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _process_began_s() -> float:
    """Unix time at which the kernel started this process (field 22 of /proc/self/stat, in ticks since boot)."""
    ticks = float(Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19])
    uptime_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return time.time() - uptime_s + ticks / os.sysconf("SC_CLK_TCK")
