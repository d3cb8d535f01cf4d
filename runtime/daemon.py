"""The daemon: startup / main loop / tick / shutdown."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from runtime.annotator import Annotator
from runtime.capture import Capture
from runtime.collector import Collector
from runtime.config import FPS_MAX, EdgeConfig
from runtime.errors import BackendError, DeviceLostError, EdgeloopError, SinkError
from runtime.ledger import Ledger
from runtime.metrics import peak_resident_bytes, resident_bytes
from runtime.outlet import Outlet
from runtime.pipeline import Batch, Pipeline
from runtime.scheduler import Scheduler
from runtime.sinks import Sink, open_sink
from runtime.swap import BundleWatcher, load_pipeline

log = logging.getLogger(__name__)

_REPORT_S = 60.0
_JUMP_S = 2.0  # NTP slews smaller differences
# Within systemd's and Kubernetes' patience, and within five seconds in sum.
_CAPTURES_END_S, _SINKS_END_S = 1.5, 2.5
_ENGINE_TRIES = 3  # failures in a row until the process gives up; the service manager starts it again


class Daemon:
    """Runs the cameras of one device through one model until they end or it is told to stop."""

    def __init__(self, config: EdgeConfig, reread: Callable[[], EdgeConfig] | None = None) -> None:
        """`reread` gives the configuration anew on SIGHUP; without it SIGHUP only looks for a new bundle."""
        self._config, self._reread = config, reread
        self._should_exit, self._should_reload = threading.Event(), threading.Event()
        self._changed = threading.Event()
        self._ledger = Ledger()
        self._swaps: list[str] = []
        self._engine_failures = 0
        self._started_s = time.monotonic()
        self._reported_s = self._started_s
        self._clock_offset_s = time.time() - time.monotonic()
        self._first_frame_s: float | None = None
        self._elapsed_s: float | None = None
        self._resident_bytes = 0

    def run(self) -> dict[str, object]:
        """Starts, runs and stops; returns the summary that `edge run` prints.

        Raises:
            EdgeloopError: something in the configuration cannot be opened; nothing was processed.
            BackendError: the engine failed again and again.
            DeviceLostError: the GPU's context is gone; only another process can go on.
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
        """Asks the main loop to end after the current batch."""
        self._should_exit.set()
        self._changed.set()

    def reload(self) -> None:
        """Asks the main loop to read the configuration again after the current batch."""
        self._should_reload.set()

    def _startup(self) -> None:
        config = self._config
        # Cheap things that can be wrong come first, so that a wrong path is told in milliseconds.
        self._captures = {name: Capture(name, camera, self._changed) for name, camera in config.cameras.items()}
        self._pipeline = load_pipeline(config.model)
        bundle, thresholds = self._pipeline.bundle, self._pipeline.thresholds
        self._annotator = Annotator(config.cameras, min((thresholds.confidence, *thresholds.by_class)))
        self._collector = Collector(config.collect) if config.collect else None
        sinks: list[Sink] = [open_sink(sink, bundle.manifest.classes) for sink in config.sinks]
        lossless = all(camera.fps == FPS_MAX for camera in config.cameras.values())
        self._outlet = Outlet(
            [*sinks, self._collector] if self._collector else sinks, self._annotator.annotate, lossless=lossless
        )
        self._watcher = BundleWatcher(config.model, self._pipeline)
        self._scheduler = Scheduler(self._pipeline, config.model.batch_wait_ms / 1e3, self._changed)
        self._scheduler.watch(list(self._captures.values()))
        for capture in self._captures.values():
            capture.start()
        self._outlet.start()
        self._watcher.start()
        self._scheduler.start()
        self._started_s = self._reported_s = time.monotonic()
        backend = self._pipeline.backend
        log.info("running bundle %s, %s on %s", bundle.digest[:16], backend.precision, backend.engine)

    def _main_loop(self) -> None:
        while not self._should_exit.is_set():
            if batch := self._scheduler.take():
                self._tick(batch)
            elif self._scheduler.finished:
                if self._scheduler.error is not None:
                    raise self._scheduler.error
                return
            self._keep_house()

    def _tick(self, batch: Batch) -> None:
        self._hand_over_to(batch.pipeline)
        try:
            results = batch.pipeline.run(batch)
        except BackendError as error:
            self._survive(batch, error)
            return
        finally:
            self._scheduler.done()
        self._engine_failures = 0
        for result in results:
            self._ledger.add(result)
            if not self._outlet.put(result):
                self.stop()
        if self._first_frame_s is None:
            self._first_frame_s = time.time() - _process_began_s()
            log.info("first frame done, %.2f s after the process began", self._first_frame_s)

    def _keep_house(self) -> None:
        """What is looked at between two batches."""
        if new := self._watcher.take():
            self._scheduler.switch(new)  # its first batch ends the old one, see `_hand_over_to`
        if self._should_reload.is_set():
            self._should_reload.clear()
            self._reload()
        now_s = time.monotonic()
        jump_s = time.time() - now_s - self._clock_offset_s
        if abs(jump_s) > _JUMP_S:
            self._clock_offset_s += jump_s
            log.warning("the system's clock was set by %+.0f s; ages and pacing do not follow it, times in results do", jump_s)
        if now_s - self._reported_s >= _REPORT_S:
            self._reported_s = now_s
            log.info("%s", self.summary())

    def _hand_over_to(self, pipeline: Pipeline) -> None:
        """Batches come in order: with the first one of a new model the old one has run its last."""
        if pipeline is self._pipeline:
            return
        old, self._pipeline = self._pipeline, pipeline
        old.close()
        self._swaps.append(pipeline.bundle.digest)
        log.info("took over bundle %s", pipeline.bundle.digest[:16])

    def _survive(self, batch: Batch, error: BackendError) -> None:
        """An engine that failed: its frames are counted, and it is loaded anew.

        Raises:
            BackendError: it failed too often, or the device is gone.
        """
        for row in batch.rows:
            self._ledger.drop(row.frame.camera, "engine")
        self._engine_failures += 1
        if isinstance(error, DeviceLostError) or self._engine_failures >= _ENGINE_TRIES:
            raise error
        log.error("the engine failed and is loaded again: %s", error)
        self._scheduler.switch(load_pipeline(self._config.model))

    def _reload(self) -> None:
        """Reads the configuration again: cameras and model follow it, the rest needs a restart."""
        try:
            config = self._reread() if self._reread else self._config
            added = {
                name: Capture(name, camera, self._changed)
                for name, camera in config.cameras.items() if self._config.cameras.get(name) != camera
            }  # fmt: skip
            self._annotator.watch(config.cameras)
        except EdgeloopError as error:
            log.error("the configuration was not taken over, the old one goes on: %s", error)
            return
        for key in ("sinks", "collect"):
            if getattr(config, key) != getattr(self._config, key):
                log.warning("`%s` has changed; restart the daemon for it", key)
        self._replace(added, set(self._captures) - set(config.cameras))
        if config.model != self._config.model or not self._reread:
            self._watcher.reconfigure(config.model)
        self._config = config
        log.info("configuration read again: %d cameras", len(self._captures))

    def _replace(self, added: dict[str, Capture], removed: set[str]) -> None:
        gone = [self._captures.pop(name) for name in [*self._captures] if name in removed or name in added]
        for capture in gone:
            capture.ask_to_stop()
        self._captures |= added
        self._scheduler.watch(list(self._captures.values()))
        for capture in gone:
            capture.stop(_CAPTURES_END_S)
        self._ledger.retire(gone)
        for capture in added.values():
            capture.follow(self._ledger.read(capture.name, None), self._ledger.last_epoch(capture.name))
            capture.start()

    def _shutdown(self) -> None:
        for capture in self._captures.values():
            capture.ask_to_stop()
        for frame in self._scheduler.stop():
            self._ledger.drop(frame.camera, "shutdown")
        until_s = time.monotonic() + _CAPTURES_END_S
        for capture in self._captures.values():
            capture.stop(max(0.0, until_s - time.monotonic()))
            while capture.queue.get(timeout_s=0) is not None:
                self._ledger.drop(capture.name, "shutdown")
        self._watcher.stop()
        lossless = all(capture.lossless for capture in self._captures.values())
        self._outlet.close(None if lossless and not self._should_exit.is_set() else _SINKS_END_S)
        self._elapsed_s = time.monotonic() - self._started_s
        self._resident_bytes = resident_bytes()  # with the model loaded, as it ran
        self._pipeline.close()

    @property
    def failed(self) -> bool:
        """Whether a camera stopped because its source was broken, or results were lost because a sink failed."""
        lost = self._outlet.failed + (self._collector.failed if self._collector else 0)
        return lost > 0 or any(capture.error is not None for capture in self._captures.values())

    def summary(self) -> dict[str, object]:
        """Counts and latencies so far. For every camera, read = processed + dropped, whatever happened."""
        elapsed_s = time.monotonic() - self._started_s if self._elapsed_s is None else self._elapsed_s
        processed = sum(self._ledger.processed.values())
        names = [*self._captures, *(name for name in self._ledger.cameras() if name not in self._captures)]
        return {
            "cameras": {name: self._counts(name) for name in names},
            "elapsed_s": round(elapsed_s, 3),
            "frames_per_s": round(processed / max(elapsed_s, 1e-9), 2),
            "detections": self._ledger.detections,
            "latency": {stage: durations.summary().as_dict() for stage, durations in self._ledger.durations.items()},
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

    def _counts(self, name: str) -> dict[str, object]:
        capture = self._captures.get(name)
        return {
            "read": self._ledger.read(name, capture),
            "processed": self._ledger.processed[name],
            "dropped": self._ledger.dropped(name, capture, self._scheduler.dropped.get(name, {})),
        }

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT ask for a clean end, SIGHUP for the configuration; a second end is at once.

        Nothing to install off the main thread.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, _: FrameType | None) -> None:
            if self._should_exit.is_set():
                os._exit(128 + number)
            self.stop()

        def reload(number: int, _: FrameType | None) -> None:
            self.reload()

        handlers = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: reload}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
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
