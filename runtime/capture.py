"""One thread a camera: paces the source, stamps frames, reconnects, and accounts for every one."""

from __future__ import annotations

import logging
import threading
import time

from runtime.config import FPS_MAX, CameraConfig
from runtime.errors import SourceError
from runtime.frame import Frame
from runtime.queues import BoundedQueue
from runtime.sources import Source, open_source

log = logging.getLogger(__name__)

_FALLBACK_FPS = 10.0  # for files that do not tell their own rate
_RECONNECT_FIRST_S, _RECONNECT_MOST_S = 1.0, 10.0  # a camera that reboots is back within a minute; do not hammer it


class Capture:
    """Reads one camera until it ends or is stopped; a live one is reconnected for ever.

    `queue` holds the latest frame of a live camera (older ones are dropped and counted); for `fps: max` it holds two
    and the source waits. Attributes `read` and `error` may be read from other threads.
    """

    def __init__(self, name: str, config: CameraConfig, changed: threading.Event) -> None:
        """Opens a file or folder, so that a wrong path is told before the daemon starts; a live camera may come later.

        `changed` is set at each frame.

        Raises:
            SourceError: the file or folder cannot be opened.
        """
        self.name = name
        self.read = 0
        self.error: SourceError | None = None
        self._config, self._changed = config, changed
        self._source: Source | None = None if config.live else open_source(config.source)
        lossless = config.fps == FPS_MAX
        self.queue: BoundedQueue[Frame] = BoundedQueue(2 if lossless else 1, lossless=lossless)
        self._interval_s = 0.0 if lossless or self._source is None else self._pace_s(self._source)
        self._epoch = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"capture-{name}", daemon=True)

    def start(self) -> None:
        """Starts reading."""
        self._thread.start()

    def stop(self) -> None:
        """Asks the thread to end and waits for it a while; a source stuck in a driver is left to the process's end."""
        self._stop.set()
        self.queue.close()
        self._thread.join(timeout=3)

    @property
    def finished(self) -> bool:
        """The source has ended and its last frame was taken."""
        return self.queue.finished

    def _pace_s(self, source: Source) -> float:
        rate = self._config.fps if isinstance(self._config.fps, float) else source.fps
        return 1 / (rate or _FALLBACK_FPS)

    def _run(self) -> None:
        try:
            if self._source is not None:
                self._read_source(self._source)
            while self._config.live and not self._stop.is_set():
                self._connect()
        except SourceError as error:
            self.error = error
        except Exception as error:  # noqa: BLE001  a defect in one source ends that camera with a word, never silently
            self.error = SourceError(f"camera {self.name} failed: {error!r}; please report this")
        finally:
            if self._source is not None:
                self._source.close()
            self.queue.close()
            self._changed.set()

    def _read_source(self, source: Source) -> None:
        due = time.monotonic()
        for image in source.images():
            if self._interval_s:
                self._stop.wait(max(0.0, due - time.monotonic()))
                due = max(due + self._interval_s, time.monotonic())
            if self._stop.is_set():
                return
            frame = Frame(image, self.name, self.read, time.monotonic(), time.time(), self._epoch)
            if self.queue.put(frame):
                self.read += 1
                self._changed.set()

    def _connect(self) -> None:
        """Opens a live camera, again and again if need be, and reads it until the stream breaks."""
        delay_s = _RECONNECT_FIRST_S
        while not self._stop.is_set():
            try:
                self._source = open_source(self._config.source)
                break
            except SourceError as error:
                log.warning("camera %s: %s; trying again in %.0f s", self.name, error, delay_s)
                self._stop.wait(delay_s)
                delay_s = min(2 * delay_s, _RECONNECT_MOST_S)
        if self._source is not None and not self._stop.is_set():
            self._read_source(self._source)
            self._source.close()
            self._epoch += 1
            if not self._stop.wait(_RECONNECT_FIRST_S):
                log.warning("camera %s: stream lost, reconnecting", self.name)
