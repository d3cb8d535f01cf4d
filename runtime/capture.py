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
    """Reads one camera until it ends or is stopped.

    `queue` holds the latest frame of a live camera (older ones are dropped and counted); for `fps: max` it holds two
    and the source waits. Attributes `read` and `error` may be read from other threads.
    """

    def __init__(self, name: str, config: CameraConfig, changed: threading.Event) -> None:
        """Opens the source, so that a wrong path is told before the daemon starts. `changed` is set at each frame.

        Raises:
            SourceError: the source cannot be opened.
        """
        self.name = name
        self.read = 0
        self.error: SourceError | None = None
        self._config, self._changed = config, changed
        self._source: Source = open_source(config.source)
        lossless = config.fps == FPS_MAX and not self._source.live
        self.queue: BoundedQueue[Frame] = BoundedQueue(2 if lossless else 1, lossless=lossless)
        self._interval_s = 0.0 if lossless else self._pace_s()
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

    def _pace_s(self) -> float:
        if self._source.live:
            return 0.0  # the camera sets the pace
        rate = self._config.fps if isinstance(self._config.fps, float) else self._source.fps
        return 1 / (rate or _FALLBACK_FPS)

    def _run(self) -> None:
        try:
            self._read_source()
            while self._source.live and not self._stop.is_set():
                self._reconnect()
                self._read_source()
        except SourceError as error:
            self.error = error
        finally:
            self._source.close()
            self.queue.close()
            self._changed.set()

    def _read_source(self) -> None:
        due = time.monotonic()
        for image in self._source.images():
            if self._interval_s:
                self._stop.wait(max(0.0, due - time.monotonic()))
                due = max(due + self._interval_s, time.monotonic())
            if self._stop.is_set():
                return
            frame = Frame(image, self.name, self.read, time.monotonic(), time.time(), self._epoch)
            if self.queue.put(frame):
                self.read += 1
                self._changed.set()

    def _reconnect(self) -> None:
        delay_s = _RECONNECT_FIRST_S
        self._source.close()
        while not self._stop.wait(delay_s):
            log.warning("camera %s: stream lost, reconnecting", self.name)
            try:
                self._source = open_source(self._config.source)
                self._epoch += 1
                return
            except SourceError:
                delay_s = min(2 * delay_s, _RECONNECT_MOST_S)
