"""Taking over a new release while frames flow: load and warm beside the running one, then swap between two frames."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from runtime.bundle import Bundle
from runtime.config import ModelConfig
from runtime.errors import EdgeloopError
from runtime.pipeline import Pipeline
from runtime.signature import verify_bundle

log = logging.getLogger(__name__)


def load_pipeline(config: ModelConfig) -> Pipeline:
    """Opens, verifies, loads and warms the configured bundle; no engine sees one that the trust key did not sign.

    Raises like `Bundle.open`, `verify_bundle` and `open_backend`.
    """
    bundle = verify_bundle(config.bundle, config.trust_key) if config.trust_key else Bundle.open(config.bundle)
    return Pipeline.load(bundle, config.engine, config.precision, config.threads, config.confidence)


class BundleWatcher:
    """Looks every `reload_s` where the bundle path leads; a new place is loaded on this thread.

    The classes must stay the same, since sinks were opened with their names. A release that cannot be loaded is
    logged once and left alone: the running model goes on.
    """

    def __init__(self, config: ModelConfig, running: Pipeline) -> None:
        self._config = config
        self._seen = running.bundle.path
        self._classes = running.bundle.manifest.classes
        self._ready: Pipeline | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bundle-watcher", daemon=True)
        self.failed = 0

    def start(self) -> None:
        """Starts looking."""
        self._thread.start()

    def take(self) -> Pipeline | None:
        """The new release, loaded and warm, once; the caller owns it."""
        with self._lock:
            ready, self._ready = self._ready, None
            return ready

    def stop(self) -> None:
        """Stops looking; a release that nobody took is closed."""
        self._stop.set()
        self._thread.join(timeout=30)
        if ready := self.take():
            ready.close()

    def _run(self) -> None:
        while not self._stop.wait(self._config.reload_s):
            try:
                target = Path(self._config.bundle).resolve()
            except (OSError, RuntimeError):  # a link that is being moved by hand, or points at itself
                continue
            if target != self._seen:
                self._seen = target
                self._load()

    def _load(self) -> None:
        try:
            pipeline = load_pipeline(self._config)
            if pipeline.bundle.manifest.classes != self._classes:
                raise EdgeloopError(f"{self._config.bundle} has other classes; restart the daemon to change classes")
        except EdgeloopError as error:
            self.failed += 1
            log.error("new bundle refused, the running one goes on: %s", error)
            return
        with self._lock:
            stale, self._ready = self._ready, pipeline
        if stale:
            stale.close()
