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
from typing import TYPE_CHECKING

from runtime.annotator import Annotator
from runtime.capture import Capture
from runtime.clock import ClockWatch
from runtime.collector import Collector
from runtime.config import FPS_MAX, EdgeConfig, ModelConfig, ServerConfig
from runtime.errors import BackendError, DeviceLostError, EdgeloopError, SinkError
from runtime.ledger import Ledger
from runtime.outlet import Outlet
from runtime.pipeline import Batch, Pipeline, Result
from runtime.reports import Reports
from runtime.scheduler import Scheduler
from runtime.sinks import Sink, open_sink
from runtime.swap import BundleWatcher, load_pipeline
from runtime.systemd import Notifier, watchdog_interval_s
from runtime.telemetry.sampler import TelemetrySampler

if TYPE_CHECKING:  # those who serve import them
    from runtime.exposition import Exposition
    from runtime.server.thread import Server

log = logging.getLogger(__name__)

_REPORT_S = 60.0
# Within systemd's and Kubernetes' patience, and within five seconds in sum.
_CAPTURES_END_S, _SINKS_END_S = 1.5, 2.5
_STUCK_S = 10.0  # frames wait and none has a result for so long: the engine hangs
_ENGINE_TRIES = 3  # failures in a row until the process gives up; the service manager starts it again


class Daemon:
    """Runs the cameras of one device through one model until they end or it is told to stop."""

    def __init__(
        self,
        config: EdgeConfig,
        reread: Callable[[], EdgeConfig] | None = None,
        load: Callable[[ModelConfig, int], Pipeline] = load_pipeline,
    ) -> None:
        """Nothing is opened before `run`.

        Args:
            config: the whole of edge.yaml.
            reread: gives the configuration anew on SIGHUP; without it SIGHUP only loads the bundle again.
            load: how a bundle becomes a pipeline, given how many cameras it serves.
        """
        self._config, self._reread, self._load = config, reread, load
        self._should_exit, self._should_reload = threading.Event(), threading.Event()
        self._changed = threading.Event()
        self._notifier, self._watchdog_s = Notifier(), watchdog_interval_s()
        self._engine_failures = 0
        self._fed_s = self._flowed_s = self._reported_s = time.monotonic()
        self._clock = ClockWatch()

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
        except DeviceLostError:
            self._shutdown(engine=False)  # a context that is gone may hang whoever frees it
            raise
        except BaseException:
            self._shutdown()
            raise
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
        self._pipeline = self._load(config.model, len(config.cameras))
        bundle, thresholds = self._pipeline.bundle, self._pipeline.thresholds
        self._annotator = Annotator(config.cameras, min((thresholds.confidence, *thresholds.by_class)))
        self._collector = Collector(config.collect) if config.collect else None
        sinks: list[Sink] = [open_sink(sink, bundle.manifest.classes) for sink in config.sinks]
        lossless = all(camera.fps == FPS_MAX for camera in config.cameras.values())
        self._outlet = Outlet(
            [*sinks, self._collector] if self._collector else sinks, self._annotator.annotate, lossless=lossless
        )
        self._watcher = BundleWatcher(config.model, self._pipeline, len(config.cameras))
        self._scheduler = Scheduler(self._pipeline, config.model.batch_wait_ms / 1e3, self._changed)
        self._scheduler.watch(list(self._captures.values()))
        self._telemetry = TelemetrySampler() if config.server else None
        self._reports = Reports(
            Ledger(), self._captures, self._pipeline, self._scheduler, self._outlet, self._collector, self._watcher,
            self._telemetry,
        )  # fmt: skip
        self._exposition: Exposition | None = None
        self._server: Server | None = None
        if config.server:
            self._exposition, self._server = self._open_server(config.server)
        for part in (*self._captures.values(), self._outlet, self._watcher, self._scheduler, self._telemetry):
            if part is not None:
                part.start()
        self._reports.state = "running"
        backend = self._pipeline.backend
        log.info("running bundle %s, %s on %s", bundle.digest[:16], backend.precision, backend.engine)
        self._notifier.ready(f"{len(self._captures)} cameras, bundle {bundle.digest[:16]}")

    def _open_server(self, config: ServerConfig) -> tuple[Exposition, Server]:
        from runtime.exposition import Exposition  # with its libraries a fifth of a second that only those who serve pay
        from runtime.server.app import Endpoints
        from runtime.server.thread import Server

        exposition = Exposition(self._reports.status)
        server = Server(config.host, config.port, Endpoints(self._reports.status, self._progressing, exposition.render))
        server.start()
        return exposition, server

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
        self._flowed_s = time.monotonic()
        for result in results:
            self._count(result)
            if not self._outlet.put(result):
                self.stop()
        if self._reports.first_frame_s is None:
            self._reports.first_frame_s = time.time() - _process_began_s()
            log.info("first frame done, %.2f s after the process began", self._reports.first_frame_s)

    def _count(self, result: Result) -> None:
        self._reports.ledger.add(result)
        if self._exposition:
            camera = result.frame.camera
            self._exposition.observe(camera, "preprocess", result.preprocess_s)
            self._exposition.observe(camera, "infer", result.infer_s)
            self._exposition.observe(camera, "postprocess", result.postprocess_s)
            self._exposition.observe_age(camera, result.age_s)

    def _keep_house(self) -> None:
        """What is looked at between two batches."""
        if new := self._watcher.take():
            self._scheduler.switch(new)  # its first batch ends the old one, see `_hand_over_to`
        if self._should_reload.is_set():
            self._should_reload.clear()
            self._reload()
        now_s = time.monotonic()
        if jump_s := self._clock.jump_s():
            log.warning("the system's clock was set by %+.0f s; ages and pacing do not follow it, times in results do", jump_s)
        if self._watchdog_s and now_s - self._fed_s >= self._watchdog_s and self._flowed_s > self._fed_s:
            self._notifier.watchdog()
            self._fed_s = now_s
        if now_s - self._reported_s >= _REPORT_S:
            self._reported_s = now_s
            log.info("%s", self.summary())
            self._notifier.status(
                f"{self.summary()['frames_per_s']} frames/s; {'; '.join(self._troubles()) or 'all cameras run'}"
            )

    def _progressing(self) -> bool:
        """Whether frames flow; while no camera gives any, whether at least the loop turns."""
        silent_s = time.monotonic() - self._flowed_s
        waiting = any(len(capture.queue) for capture in self._captures.values())
        return silent_s < _STUCK_S or not waiting

    def _troubles(self) -> list[str]:
        return self._reports.status().troubles()

    def _hand_over_to(self, pipeline: Pipeline) -> None:
        """Batches come in order: with the first one of a new model the old one has run its last."""
        if pipeline is self._pipeline:
            return
        old, self._pipeline = self._pipeline, pipeline
        old.close()
        self._reports.pipeline = pipeline
        self._reports.swaps.append(pipeline.bundle.digest)
        log.info("took over bundle %s", pipeline.bundle.digest[:16])

    def _survive(self, batch: Batch, error: BackendError) -> None:
        """An engine that failed: its frames are counted, and it is loaded anew.

        Raises:
            BackendError: it failed too often, or the device is gone.
        """
        for row in batch.rows:
            self._reports.ledger.drop(row.frame.camera, "engine")
        self._engine_failures += 1
        if isinstance(error, DeviceLostError) or self._engine_failures >= _ENGINE_TRIES:
            raise error
        log.error("the engine failed and is loaded again: %s", error)
        self._scheduler.switch(self._load(self._config.model, len(self._captures)))

    def _reload(self) -> None:
        """Reads the configuration again: cameras and model follow it, the rest needs a restart."""
        self._notifier.reloading()
        self._reports.state = "reloading"
        try:
            self._take_over(self._reread() if self._reread else self._config)
        except EdgeloopError as error:
            log.error("the configuration was not taken over, the old one goes on: %s", error)
        self._reports.state = "running"
        self._notifier.ready(f"{len(self._captures)} cameras, bundle {self._pipeline.bundle.digest[:16]}")

    def _take_over(self, config: EdgeConfig) -> None:
        old = self._config
        added = {
            name: Capture(name, camera, self._changed)
            for name, camera in config.cameras.items() if old.cameras.get(name) != camera
        }  # fmt: skip
        self._annotator.watch(config.cameras)
        if (config.sinks, config.collect, config.server) != (old.sinks, old.collect, old.server):
            log.warning("sinks, collect and server are only read at the start; restart the daemon for them")
        self._replace(added, set(self._captures) - set(config.cameras))
        if config.model != old.model or not self._reread:
            self._watcher.reconfigure(config.model, len(config.cameras))
        self._config = config
        log.info("configuration read again: %d cameras", len(self._captures))

    def _replace(self, added: dict[str, Capture], removed: set[str]) -> None:
        gone = [capture for name, capture in self._captures.items() if name in removed or name in added]
        kept = {name: capture for name, capture in self._captures.items() if capture not in gone}
        self._captures = self._reports.captures = kept | added  # a new dict: the server's thread may be reading the old one
        self._scheduler.watch(list(self._captures.values()))  # before any ends: it ends with its last camera
        for capture in gone:
            capture.ask_to_stop()
        for capture in gone:
            capture.stop(_CAPTURES_END_S)
        self._reports.ledger.retire(gone)
        for capture in added.values():
            capture.follow(self._reports.ledger.read(capture.name, None), self._reports.ledger.last_epoch(capture.name))
            capture.start()

    def _shutdown(self, *, engine: bool = True) -> None:
        self._reports.state = "stopping"
        self._notifier.stopping()
        for capture in self._captures.values():
            capture.ask_to_stop()
        for frame in self._scheduler.stop():
            self._reports.ledger.drop(frame.camera, "shutdown")
        until_s = time.monotonic() + _CAPTURES_END_S
        for capture in self._captures.values():
            capture.stop(max(0.0, until_s - time.monotonic()))
            while capture.queue.get(timeout_s=0) is not None:
                self._reports.ledger.drop(capture.name, "shutdown")
        lossless = all(capture.lossless for capture in self._captures.values())
        self._outlet.close(None if lossless and not self._should_exit.is_set() else _SINKS_END_S)
        self._reports.end()
        for part in (self._watcher, self._telemetry, self._server):
            if part is not None:
                part.stop()
        if engine:
            self._pipeline.close()

    @property
    def failed(self) -> bool:
        """Whether a camera stopped because its source was broken, or results were lost because a sink failed."""
        return self._reports.failed

    def summary(self) -> dict[str, object]:
        """See `Reports.summary`."""
        return self._reports.summary()

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
