"""The daemon: startup / main loop / tick / shutdown."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from runtime.annotator import Annotator
from runtime.capture import Capture
from runtime.clock import ClockWatch
from runtime.collector import Collector
from runtime.config import EdgeConfig, ModelConfig, ServerConfig
from runtime.errors import BackendError, ConfigError, DeviceLostError, EdgeloopError, SinkError
from runtime.ledger import Ledger
from runtime.metrics import process_began_s, resident_bytes
from runtime.outlet import Outlet
from runtime.pipeline import Pipeline, Result, thresholds_of
from runtime.reports import Reports, camera_status
from runtime.scheduler import Scheduler
from runtime.signals import ending_signals
from runtime.sinks import Sink, open_sink
from runtime.status import DaemonStatus
from runtime.swap import BundleWatcher, load_pipeline
from runtime.systemd import Notifier, watchdog_interval_s
from runtime.telemetry.sampler import TelemetrySampler
from runtime.threads import LeftThread
from runtime.workers import Outcome, Workers

if TYPE_CHECKING:  # those who serve import them
    from runtime.exposition import Exposition
    from runtime.server.thread import Server

log = logging.getLogger(__name__)

_REPORT_S = 60.0
# Within systemd's and Kubernetes' patience, and within five seconds in sum.
_CAPTURES_END_S, _SINKS_END_S, _ASIDE_END_S = 1.0, 2.5, 0.5
_LEAVE_S = 0.3  # for a camera that a reload takes out; the others wait meanwhile
_STUCK_S = 30.0  # frames wait and none has a result for so long: the engine hangs
_TICK_S = 0.2  # between two looks at what is not a frame
_ENGINE_TRIES = 3  # failures in a row until the process gives up; the service manager starts it again


class Daemon:
    """Runs the cameras of one device through one model until they end or it is told to stop."""

    def __init__(
        self,
        config: EdgeConfig,
        reread: Callable[[], EdgeConfig] | None = None,
        load: Callable[[ModelConfig, int, int], Pipeline] = load_pipeline,
    ) -> None:
        """Nothing is opened before `run`.

        Args:
            config: the whole of edge.yaml.
            reread: gives the configuration anew on SIGHUP; without it SIGHUP only loads the bundle again.
            load: how a bundle becomes a pipeline, given how many cameras it serves on how many streams.
        """
        self._config, self._reread, self._load = config, reread, load
        self._should_exit, self._should_reload = threading.Event(), threading.Event()
        self._changed = threading.Event()
        self._notifier, self._watchdog_s = Notifier(), watchdog_interval_s()
        self._engine_failures = 0
        self._began_s = self._fed_s = self._reported_s = time.monotonic()
        self._streams = config.streams
        self._clock = ClockWatch()

    def run(self) -> dict[str, object]:
        """Starts, runs and stops; returns the summary that `edge run` prints.

        Raises:
            EdgeloopError: something in the configuration cannot be opened; nothing was processed.
            BackendError: the engine failed again and again.
            DeviceLostError: the GPU's context is gone; only another process can go on.
        """
        self._startup()
        with ending_signals(self.stop, self.reload):
            self._told_ready()
            ended_by_itself = False
            try:
                self._main_loop()
                ended_by_itself = not self._should_exit.is_set()
            except DeviceLostError:
                self._notifier.status("the device was lost; beginning anew")  # STOPPING would let systemd end the new program
                self._shutdown(engine=False)  # a context that is gone may hang whoever frees it
                raise
            except BaseException:
                self._notifier.stopping()
                self._shutdown()
                raise
            self._notifier.stopping()
            self._shutdown(wait=ended_by_itself)
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
        self._exposition: Exposition | None = None
        self._server: Server | None = None
        if config.server:
            self._exposition, self._server = self._open_server(config.server)
        try:
            self._open_parts(config)
        except BaseException:
            if self._server:
                self._server.stop()
            raise

    def _open_parts(self, config: EdgeConfig) -> None:
        pipeline = self._pipeline = self._load(config.model, len(config.cameras), self._streams)
        self._streams = pipeline.backend.streams  # a GPU takes one batch after the other
        self._annotator = Annotator(config.cameras, _lowest(pipeline))
        self._collector = Collector(config.collect) if config.collect else None
        sinks: list[Sink] = [open_sink(sink, pipeline.bundle.manifest.classes) for sink in config.sinks]
        self._outlet = Outlet(
            [*sinks, self._collector] if self._collector else sinks, self._annotator.annotate, lossless=config.lossless
        )
        self._watcher = BundleWatcher(config.model, pipeline, len(config.cameras), self._streams)
        self._scheduler = Scheduler(pipeline, config.model.batch_wait_ms / 1e3, self._changed, self._streams)
        self._workers = Workers(self._scheduler, self._streams)
        self._scheduler.watch(list(self._captures.values()))
        self._telemetry = TelemetrySampler() if config.server else None
        self._reports = Reports(
            Ledger(), self._captures, pipeline, self._scheduler, self._outlet, self._collector, self._watcher, self._telemetry
        )
        for part in (*self._captures.values(), self._outlet, self._watcher, self._scheduler, self._workers, self._telemetry):
            if part is not None:
                part.start()
        self._reports.state = "running"

    def _open_server(self, config: ServerConfig) -> tuple[Exposition, Server]:
        from runtime.exposition import Exposition  # with its libraries a fifth of a second that only those who serve pay
        from runtime.server.app import Endpoints
        from runtime.server.thread import Server

        exposition = Exposition(self._status)
        server = Server(config.host, config.port, Endpoints(self._status, self._progressing, exposition.render))
        server.start()
        return exposition, server

    def _told_ready(self) -> None:
        bundle, backend = self._pipeline.bundle, self._pipeline.backend
        log.info("running bundle %s, %s on %s", bundle.digest[:16], backend.precision, backend.engine)
        self._notifier.ready(f"{len(self._captures)} cameras, bundle {bundle.digest[:16]}")

    def _main_loop(self) -> None:
        while not self._should_exit.is_set():
            if outcome := self._workers.next(_TICK_S):
                self._tick(outcome)
            elif self._workers.finished:
                if self._scheduler.error is not None:
                    raise self._scheduler.error
                return
            self._keep_house()

    def _tick(self, outcome: Outcome) -> None:
        self._hand_over_to(outcome.batch.pipeline)
        try:
            self._settle(outcome)
            if isinstance(outcome.error, BackendError):
                self._survive(outcome.batch.pipeline, outcome.error)
                return
        finally:
            self._scheduler.done()
        if outcome.error:
            raise outcome.error
        if outcome.batch.pipeline is self._scheduler.pipeline:
            self._engine_failures = 0
        if self._reports.first_frame_s is None:
            self._reports.first_frame_s = time.time() - process_began_s()
            log.info("first frame done, %.2f s after the process began", self._reports.first_frame_s)

    def _settle(self, outcome: Outcome) -> None:
        """Every frame of a batch is counted, with its result or without."""
        if outcome.error:
            for row in outcome.batch.rows:
                self._reports.ledger.drop(row.frame.camera, "engine")
        for found in outcome.results:
            result = replace(found, age_s=time.monotonic() - found.frame.captured_monotonic_s)  # it may have waited its turn
            self._count(result)
            if not self._outlet.put(result, lambda: not self._should_exit.is_set()):
                self.stop()

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
            self._switch(new)
        if self._should_reload.is_set():
            self._should_reload.clear()
            self._reload()
        now_s = time.monotonic()
        if jump_s := self._clock.jump_s():
            log.warning("the system's clock was set by %+.0f s; ages and pacing do not follow it, times in results do", jump_s)
        if self._watchdog_s and now_s - self._fed_s >= self._watchdog_s and self._flowing():
            self._notifier.watchdog()
            self._fed_s = now_s
        if now_s - self._reported_s >= _REPORT_S:
            self._reported_s = now_s
            summary, troubles = self.summary(), self._reports.status().troubles()
            log.info("%s", summary)
            self._notifier.status(f"{summary['frames_per_s']} frames/s; {'; '.join(troubles) or 'all cameras run'}")

    def _flowing(self) -> bool:
        return self._scheduler.looked_s > self._fed_s and self._progressing()

    def _status(self) -> DaemonStatus:
        """For the server's thread, which answers before the engine is loaded."""
        if not hasattr(self, "_reports"):
            nothing = Ledger()
            cameras = [camera_status(capture, nothing, {}) for capture in self._captures.values()]
            return DaemonStatus("starting", time.monotonic() - self._began_s, cameras, None, 0, 0, 0, resident_bytes(), 0, 0)
        return self._reports.status()

    def _progressing(self) -> bool:
        """Whether neither the engine nor the filling of a batch hangs; no frames at all are the cameras' trouble."""
        if not hasattr(self, "_workers"):
            return True
        busy = (self._workers.busy_since_s, self._scheduler.busy_s)
        return all(since_s is None or time.monotonic() - since_s < _STUCK_S for since_s in busy)

    def _switch(self, pipeline: Pipeline) -> None:
        """Its first batch ends the running one, see `_hand_over_to`; one that never had a batch ends here."""
        replaced = self._scheduler.switch(pipeline)
        if replaced is not None and replaced is not self._pipeline:
            replaced.close()

    def _hand_over_to(self, pipeline: Pipeline) -> None:
        """Batches come in order: with the first one of a new model the old one has run its last."""
        if pipeline is self._pipeline:
            return
        old, self._pipeline = self._pipeline, pipeline
        old.close()
        self._annotator.confidence = _lowest(pipeline)
        self._reports.pipeline = pipeline
        if pipeline.bundle.digest != old.bundle.digest:
            self._reports.swaps.append(pipeline.bundle.digest)
            log.info("took over bundle %s", pipeline.bundle.digest[:16])
        log.info("now %s on %s", pipeline.backend.precision, pipeline.backend.engine)

    def _survive(self, pipeline: Pipeline, error: BackendError) -> None:
        """An engine that failed is loaded anew, from the bundle that ran.

        Raises:
            BackendError: it failed too often, or the device is gone.
        """
        if isinstance(error, DeviceLostError):
            raise error
        if pipeline is not self._scheduler.pipeline:
            return  # the second batch of an engine that has its successor
        model = self._config.model.model_copy(update={"bundle": str(pipeline.bundle.path)})
        while True:
            self._engine_failures += 1
            if self._engine_failures >= _ENGINE_TRIES:
                raise error
            log.error("the engine failed and is loaded again: %s", error)
            try:
                pipeline = self._load(model, len(self._captures), self._streams)
                pipeline.reserve(self._streams + 1)
                self._switch(pipeline)
                return
            except EdgeloopError as refused:
                log.error("it cannot be loaded: %s", refused)

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
        if config.lossless != old.lossless:
            raise ConfigError("cameras that wait (fps: max) and live ones cannot take each other's place; restart the daemon")
        added = {
            name: Capture(name, camera, self._changed)
            for name, camera in config.cameras.items() if old.cameras.get(name) != camera
        }  # fmt: skip
        thresholds_of(
            self._pipeline.bundle, config.model.confidence
        )  # a class that is not there is told before anything changes
        self._annotator.watch(config.cameras)
        if (config.sinks, config.collect, config.server) != (old.sinks, old.collect, old.server):
            log.warning("sinks, collect and server are only read at the start; restart the daemon for them")
        if config.streams != old.streams:
            log.warning("how many frames are looked at at once is only set at the start; restart the daemon for it")
        self._replace(added, set(self._captures) - set(config.cameras))
        if config.model != old.model or not self._reread or (len(config.cameras) == 1) != (len(old.cameras) == 1):
            self._watcher.reconfigure(config.model, len(config.cameras))
        self._config = config
        removed = set(old.cameras) - set(config.cameras)
        told = {
            "new or changed": sorted(added),
            "gone": sorted(removed),
            "model": ["changed"] if config.model != old.model else [],
        }
        changes = "; ".join(f"{name}: {', '.join(values)}" for name, values in told.items() if values)
        log.info("configuration read again, %d cameras; %s", len(self._captures), changes or "nothing changed")

    def _replace(self, added: dict[str, Capture], removed: set[str]) -> None:
        gone = [capture for name, capture in self._captures.items() if name in removed or name in added]
        captures = {name: capture for name, capture in self._captures.items() if capture not in gone} | added
        self._scheduler.watch(list(captures.values()))  # before any ends: it ends with its last camera
        self._end_captures(gone, _LEAVE_S)
        self._reports.ledger.retire(gone)
        self._captures = self._reports.captures = captures  # a new dict: the server's thread may be reading the old one
        for capture in added.values():
            capture.follow(self._reports.ledger.read(capture.name, None), self._reports.ledger.last_epoch(capture.name))
            capture.start()

    @staticmethod
    def _end_captures(captures: Iterable[Capture], within_s: float) -> None:
        """Ends them together; one that waits in a driver or for a server is left to end by itself."""
        until_s = time.monotonic() + within_s
        for capture in captures:
            capture.ask_to_stop()
        for capture in captures:
            capture.stop(max(0.0, until_s - time.monotonic()))

    def _shutdown(self, *, engine: bool = True, wait: bool = False) -> None:
        """Ends all parts within five seconds; `wait` gives the sinks as long as they need."""
        self._reports.state = "stopping"
        self._should_exit.set()  # nobody waits for a sink any more
        for capture in self._captures.values():
            capture.ask_to_stop()
        aside = LeftThread(target=self._end_sidelines, name="end")
        aside.start()
        for frame in self._scheduler.stop():
            self._reports.ledger.drop(frame.camera, "shutdown")
        until_s = time.monotonic() + _CAPTURES_END_S
        outcomes, unfinished = self._workers.stop(_CAPTURES_END_S)
        for outcome in outcomes:
            if not engine:  # what a device gave after it was lost is not to be believed
                outcome = replace(outcome, results=[], error=outcome.error or DeviceLostError("lost before"))
            else:
                self._hand_over_to(outcome.batch.pipeline)
            self._settle(outcome)
        for frame in unfinished:
            self._reports.ledger.drop(frame.camera, "shutdown")
        self._end_captures([*self._captures.values()], max(0.0, until_s - time.monotonic()))
        for capture in self._captures.values():
            while capture.queue.get(timeout_s=0) is not None:
                self._reports.ledger.drop(capture.name, "shutdown")
        self._outlet.close(None if wait else _SINKS_END_S)
        self._reports.end()
        aside.join(_ASIDE_END_S)
        if engine and not self._workers.alive:  # what a hung run uses must stay
            for pipeline in {id(each): each for each in (self._pipeline, self._scheduler.pipeline)}.values():
                pipeline.close()

    def _end_sidelines(self) -> None:
        self._watcher.stop()
        if self._telemetry:
            self._telemetry.stop()
        if self._server:
            self._server.stop()

    @property
    def failed(self) -> bool:
        """Whether a camera stopped because its source was broken, or results were lost because a sink failed."""
        return self._reports.failed

    def summary(self) -> dict[str, object]:
        """See `Reports.summary`."""
        return self._reports.summary()


def _lowest(pipeline: Pipeline) -> float:
    """The lowest threshold of detection."""
    return min((pipeline.thresholds.confidence, *pipeline.thresholds.by_class))
