"""One thread a camera: paces the source, stamps frames, reconnects for ever, and accounts for every one.

    starting ──frame──▶ running ──silence──▶ stalled
        │                  │  ▲                │
        │      stream lost │  │ frame          │ read timeout
        ▼                  ▼  │                ▼
      failed ◀─refused── reconnecting ◀────────┘        ended: a file was read to its end

`failed` is a camera that refuses us (password, codec) or a file that broke. A camera that refuses is asked again, seldom.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable

from runtime.config import FPS_MAX, CameraConfig, SourceConfig
from runtime.errors import SourceError, SourceRefusedError
from runtime.frame import Frame, Picture
from runtime.queues import BoundedQueue
from runtime.sources import Source, open_source
from runtime.status import CameraState
from runtime.threads import LeftThread

log = logging.getLogger(__name__)

_FALLBACK_FPS = 10.0  # for files that do not tell their own rate
# A camera that reboots must be back within seconds of its return, so the pause never grows beyond two; jitter keeps
# cameras behind one switch from asking all at once.
_RECONNECT_FIRST_S, _RECONNECT_MOST_S = 0.25, 2.0
_REFUSED_S = 30.0  # wrong passwords more often than that lock accounts
# A camera that is gone for weeks is told of every ten minutes, not every two seconds; news at once, but one that flaps
# or finds ever new reasons has no more than so many lines a minute.
_REMIND_S, _NEWS, _NEWS_WITHIN_S = 600.0, 4, 60.0
_STALLED_FRAMES, _STALLED_LEAST_S = 5, 1.0  # so many frame times without a frame, and at least that long
_RATE_SHARE = 0.1  # weight of the newest interval in the rate that is told


class Capture:
    """Reads one camera until it ends or is stopped; a live one is reconnected for ever.

    `queue` holds the latest frame of a live camera (older ones are dropped and counted); for `fps: max` it holds two
    and the source waits. The attributes may be read from other threads.

    Attributes:
        read: frames that were stamped.
        dropped: frames that went no further, by reason; `overload` is counted by the queue.
        epoch: stream epoch: grows when a lost stream is back and when the pictures change their size.
        reconnects: how often a lost stream came back.
        error: why the source ended for good.
        interval_s: usual time between two frames, None before the second.
        last_frame_s: `time.monotonic()` of the newest frame, None before the first.
        last_frame_wall_s: its Unix time.
        size_wh: its size.
    """

    def __init__(
        self,
        name: str,
        config: CameraConfig,
        changed: threading.Event,
        open_source: Callable[[SourceConfig], Source] = open_source,
        pauses_s: tuple[float, float] = (_RECONNECT_FIRST_S, _RECONNECT_MOST_S),
        refused_s: float = _REFUSED_S,
    ) -> None:
        """Opens a file or folder, so that a wrong path is told before the daemon starts; a live camera may come later.

        Args:
            name: under which its frames are filed.
            config: its block of edge.yaml.
            changed: set at each frame.
            open_source: how a source is opened.
            pauses_s: the first and the longest pause before a lost camera is asked again.
            refused_s: the pause for one that refuses us.

        Raises:
            SourceError: the file or folder cannot be opened.
        """
        self.name, self.config = name, config
        self.read, self.epoch, self.reconnects = 0, 0, 0
        self.dropped: Counter[str] = Counter(fps_cap=0)
        self.error: Exception | None = None
        self.interval_s: float | None = None
        self.last_frame_s: float | None = None
        self.last_frame_wall_s: float | None = None
        self.size_wh: tuple[int, int] | None = None
        self.reason = ""
        self._state: CameraState = "starting"
        self._changed = changed
        self._open_source, self._pauses_s, self._refused_s = open_source, pauses_s, refused_s
        self._source: Source | None = None if config.live else open_source(config.source)
        self.lossless = config.fps == FPS_MAX
        self.queue: BoundedQueue[Frame] = BoundedQueue(2 if self.lossless else 1, lossless=self.lossless)
        self._pace_s = 0.0 if self.lossless or self._source is None else self._file_interval_s(self._source)
        self._least_interval_s = 1 / config.fps if config.live and isinstance(config.fps, float) else 0.0
        self._due_s = 0.0
        self._first = 0
        self._told = ""  # the trouble that was told and has not ended
        self._told_s: deque[float] = deque(maxlen=_NEWS)
        self._stop = threading.Event()
        self._thread = LeftThread(target=self._run, name=f"capture-{name}")

    def follow(self, read: int, epoch: int) -> None:
        """Counts on where an earlier capture of this camera ended, so that no two frames have one index."""
        self._first, self.epoch = read, epoch + 1

    def start(self) -> None:
        """Starts reading."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Asks the thread to end; `stop` waits for it."""
        self._stop.set()
        self.queue.close()
        if source := self._source:
            source.interrupt()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Asks the thread to end and waits for it a while; a source stuck in a driver is left to the process's end."""
        self.ask_to_stop()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    @property
    def finished(self) -> bool:
        """The source has ended and its last frame was taken."""
        return self.queue.finished

    @property
    def state(self) -> CameraState:
        """Where it is; silence is seen from outside, since a thread that waits in a driver cannot tell."""
        if self._state == "running" and not self.lossless and self.silence_s > self._stalled_after_s:
            return "stalled"
        return self._state

    @property
    def fps(self) -> float:
        """Frames a second that come, lately; 0 while none do."""
        return 1 / self.interval_s if self.interval_s and self.state == "running" else 0.0

    @property
    def silence_s(self) -> float:
        """Seconds since the newest frame; 0 before the first."""
        return 0.0 if self.last_frame_s is None else time.monotonic() - self.last_frame_s

    @property
    def _stalled_after_s(self) -> float:
        return max(_STALLED_LEAST_S, _STALLED_FRAMES * (self.interval_s or 0.0))

    def _file_interval_s(self, source: Source) -> float:
        rate = self.config.fps if isinstance(self.config.fps, float) else source.fps
        return 1 / (rate or _FALLBACK_FPS)

    def _run(self) -> None:
        try:
            if self._source is None:
                self._stay_connected()
            else:
                self._read_once(self._source)
        except Exception as error:  # a defect of ours or of a driver; told, and the other cameras go on
            log.exception("camera %s ended by a defect; please report this", self.name)
            self.error, self.reason, self._state = error, repr(error), "failed"
        finally:
            self.queue.close()
            self._changed.set()

    def _read_once(self, source: Source) -> None:
        """A file or folder, from the first frame to the last."""
        try:
            self._read(source)
            self._state = "ended"
        except SourceError as error:
            self.error, self.reason, self._state = error, str(error), "failed"
            log.error("camera %s: %s", self.name, error)
        finally:
            source.close()

    def _stay_connected(self) -> None:
        """A camera: opened and read again and again until the daemon stops."""
        first_s, most_s = self._pauses_s
        pause_s = first_s
        while not self._stop.is_set():
            before = self.read
            try:
                self._read_live()
                lost: Exception = SourceError("the stream ended")
            except SourceError as error:
                lost = error
            except Exception as error:  # noqa: BLE001  a frame that FFmpeg cannot convert, no memory: the camera must come back
                lost = error
            if self._stop.is_set():
                return
            pause_s = first_s if self.read > before else min(2 * pause_s, most_s)
            refused = not isinstance(lost, SourceError) or isinstance(lost, SourceRefusedError)
            self._tell_lost(lost, refused)
            self._stop.wait(self._refused_s if refused else pause_s * random.uniform(0.75, 1.0))

    def _read_live(self) -> None:
        self._source = self._open_source(self.config.source)
        try:
            self._read(self._source)
        finally:
            self._source.close()
            self._source = None

    def _tell_lost(self, lost: Exception, refused: bool) -> None:
        defect = not isinstance(lost, SourceError)
        self.reason, self._state = repr(lost) if defect else str(lost), "failed" if refused else "reconnecting"
        now_s = time.monotonic()
        recent = sum(now_s - told_s < _NEWS_WITHIN_S for told_s in self._told_s)
        overdue = not self._told_s or now_s - self._told_s[-1] >= _REMIND_S
        if overdue or (self.reason != self._told and recent < _NEWS):
            self._told = self.reason
            self._told_s.append(now_s)
            after = f"asking again every {self._refused_s:.0f} s" if refused else "reconnecting"
            log.warning("camera %s: %s; %s", self.name, self.reason, after, exc_info=lost if defect else None)

    def _read(self, source: Source) -> None:
        next_s = time.monotonic()
        for image in source.images():
            if self._pace_s:
                self._stop.wait(max(0.0, next_s - time.monotonic()))
                next_s = max(next_s + self._pace_s, time.monotonic())  # a slow disk does not make a burst afterwards
            if not self._take(image):
                return

    def _take(self, image: Picture) -> bool:
        """Stamps a picture and offers it; False once the queue is closed."""
        if self._stop.is_set():
            return False
        now_s = time.monotonic()
        self._note(image, now_s)
        if now_s < self._due_s:
            self.read += 1
            self.dropped["fps_cap"] += 1
            return True
        self._due_s = max(self._due_s + self._least_interval_s, now_s)
        frame = Frame(image, self.name, self._first + self.read, now_s, time.time(), self.epoch)
        if not self.queue.put(frame):
            return False
        self.read += 1
        self._changed.set()
        return True

    def _note(self, image: Picture, now_s: float) -> None:
        """State, epoch, size and rate, as this picture shows them."""
        size_wh = (image.shape[1], image.shape[0])
        back = self._state in ("reconnecting", "failed") and self.last_frame_s is not None
        changed = self.last_frame_s is not None and (back or size_wh != self.size_wh)
        self.epoch += changed
        self.reconnects += back
        if self._told or (changed and not back):  # what was told has ended; a flapping camera is told of now and then only
            log.info("camera %s: frames of %dx%d, stream epoch %d", self.name, *size_wh, self.epoch)
            self._told = ""
        if self.last_frame_s is not None and not back:
            gap_s = now_s - self.last_frame_s
            old_s = self.interval_s
            self.interval_s = gap_s if old_s is None else old_s + _RATE_SHARE * (gap_s - old_s)
        self.last_frame_s, self.last_frame_wall_s, self.size_wh = now_s, time.time(), size_wh
        self._state, self.reason = "running", ""
