"""Taking over a new release while frames flow: load and warm beside the running one, then switch between two batches."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from runtime.bundle import Bundle
from runtime.config import ModelConfig
from runtime.errors import BundleError, EdgeloopError
from runtime.pipeline import Pipeline, Serving
from runtime.signature import verify_bundle
from runtime.threads import LeftThread

log = logging.getLogger(__name__)

_LOST_LOOKS = 3  # a link that is moved by hand is away for a moment

# A folder and its files' names, sizes and times: a bundle that is replaced in place is new, one whose copy goes on is too.
_Place = tuple[Path, tuple[tuple[str, int, int], ...]]


def load_pipeline(config: ModelConfig, cameras: int = 1, streams: int = 1, running: Pipeline | None = None) -> Pipeline:
    """Opens, verifies, loads and warms the configured bundle; no engine sees one that the trust key did not sign.

    A lone camera has no use for batches. Beside a `running` model nothing is timed: its engine is taken where nobody has
    measured.

    Raises like `Bundle.open`, `verify_bundle` and `open_backend`.
    """
    bundle = verify_bundle(config.bundle, config.trust_key) if config.trust_key else Bundle.open(config.bundle)
    unmeasured = running.backend.engine if running else None
    serving = Serving(cameras, streams, 1 if cameras == 1 else config.batch, unmeasured)
    return Pipeline.load(bundle, config.engine, config.precision, config.threads, config.confidence, serving)


class BundleWatcher:
    """Looks every `reload_s` where the bundle path leads; what is new there is loaded on this thread.

    The classes must stay the same, since sinks were opened with their names. A release that cannot be loaded is
    logged once and left alone until it changes: the running model goes on.

    Attributes:
        failed: releases that were refused.
        refused: why the last one was.
    """

    def __init__(self, config: ModelConfig, running: Pipeline, cameras: int = 1, streams: int = 1) -> None:
        self._config, self._cameras, self._streams = config, cameras, streams
        self._seen = _place(config.bundle)
        self._running = running
        self._loaded = (running.bundle.digest, config, cameras)
        self._classes = running.bundle.manifest.classes
        self._ready: Pipeline | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = LeftThread(target=self._run, name="bundle-watcher")
        self.failed = 0
        self.refused = ""

    def start(self) -> None:
        """Starts looking."""
        self._thread.start()

    def reconfigure(self, config: ModelConfig, cameras: int) -> None:
        """Loads anew with another configuration, at once."""
        self._config, self._cameras, self._seen = config, cameras, None
        self._wake.set()

    def take(self) -> Pipeline | None:
        """The new release, loaded and warm, once; the caller owns it."""
        with self._lock:
            ready, self._ready = self._ready, None
            return ready

    def stop(self, timeout_s: float = 1.0) -> None:
        """Stops looking; a release that nobody took is closed, one that is still being loaded is left to the process's end."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        if ready := self.take():
            ready.close()

    def _run(self) -> None:
        lost = 0
        while not self._stop.is_set():
            self._wake.wait(self._config.reload_s)
            self._wake.clear()
            place = _place(self._config.bundle)
            lost = lost + 1 if place is None else 0
            if lost == _LOST_LOOKS and not self._stop.is_set():
                self._refuse(BundleError(f"{self._config.bundle} leads to no folder; make it point at a bundle"))
            if not self._stop.is_set() and place is not None and place != self._seen:
                self._seen = place
                self._load()

    def _load(self) -> None:
        config, cameras = self._config, self._cameras  # `reconfigure` may come meanwhile; the next look is for it
        try:
            pipeline = load_pipeline(config, cameras, self._streams, self._running)
            pipeline.reserve(self._streams + 1)
            wanted = (pipeline.bundle.digest, config, cameras)
            if wanted == self._loaded:  # copied over itself
                pipeline.close()
                return
            if pipeline.bundle.manifest.classes != self._classes:
                pipeline.close()
                raise BundleError(f"{config.bundle} has other classes; restart the daemon to change classes")
        except Exception as error:  # noqa: BLE001  whatever a broken release does to an engine, the running one goes on
            self._refuse(error)
            return
        self._loaded, self._running = wanted, pipeline
        with self._lock:
            stale, self._ready = self._ready, pipeline
        if stale:
            stale.close()

    def _refuse(self, error: Exception) -> None:
        self.failed += 1
        self.refused = str(error) or repr(error)
        defect = None if isinstance(error, EdgeloopError) else error
        log.error("new bundle refused, the running one goes on: %s", self.refused, exc_info=defect)


def _place(path: str) -> _Place | None:
    """Where the bundle is and in which state; None while a link is being moved."""
    try:
        folder = Path(path).resolve()
        files = [(entry.name, entry.stat()) for entry in os.scandir(folder)]
    except (OSError, RuntimeError):  # RuntimeError: a link that points at itself
        return None
    return folder, tuple(sorted((name, found.st_size, found.st_mtime_ns) for name, found in files))
