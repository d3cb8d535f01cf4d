"""Which frames are looked at next: batches across cameras, filled on a thread of their own while the engine runs.

A camera's latest frame waits in its slot. The camera that was served longest ago comes first, so that under overload all
get the same share whatever their rates. A batch closes when it is full, or when its oldest frame has waited `wait_s`; an
engine that is busy is not waited for by filling early: one buffer more than batches run at once, which is being filled.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from runtime.capture import Capture
from runtime.frame import Frame
from runtime.pipeline import Batch, Pipeline
from runtime.queues import BoundedQueue
from runtime.regions import MotionGate, Region, cropped, region_of
from runtime.threads import LeftThread

_END_S = 0.5  # for a batch that is being filled
_TICK_S = 0.2  # how long a stop request may wait while no frame comes


class Scheduler:
    """Hands out filled batches; the thread that takes them runs them.

    Attributes:
        dropped: frames that no model looked at, by camera and reason (`motion`).
        error: what ended the thread: a defect, or a device that takes no more frames.
        looked_s: `time.monotonic()` when a frame of some camera was last looked at, by the motion gate or for a batch.
        busy_s: since when a batch is being filled with frames that are there; None while frames are awaited.
    """

    def __init__(self, pipeline: Pipeline, wait_s: float, changed: threading.Event, streams: int = 1) -> None:
        """`changed` is set whenever a camera has a new frame or ends; `streams` batches run at once."""
        self.dropped: dict[str, Counter[str]] = {}
        self.error: Exception | None = None
        self.looked_s = float("-inf")
        self.busy_s: float | None = None
        self._pipeline, self._wait_s, self._changed = pipeline, wait_s, changed
        self._captures: Sequence[Capture] = ()
        self._regions: Mapping[str, Region | None] = {}
        self._gates: dict[str, MotionGate] = {}
        self._served: dict[str, int] = {}
        self._turn = 0
        # The buffer that is being filled is not in the queue, so that those of a pipeline are never exceeded.
        self._ready: BoundedQueue[Batch] = BoundedQueue(1, lossless=True)
        self._buffers = threading.Semaphore(streams + 1)
        self._unqueued: list[Frame] = []
        self._used = True
        self._switching = threading.Lock()
        self._stop = threading.Event()
        self._thread = LeftThread(target=self._run, name="scheduler")

    def watch(self, captures: Sequence[Capture]) -> None:
        """Takes frames from these cameras from now on."""
        for capture in captures:
            self.dropped.setdefault(capture.name, Counter(motion=0))
            if capture not in self._captures:
                self._gates.pop(capture.name, None)
                if motion := capture.config.motion:
                    self._gates[capture.name] = MotionGate(motion.threshold, motion.every_s)
        self._regions = {capture.name: capture.config.region for capture in captures}
        self._captures = tuple(captures)
        self._changed.set()

    def start(self) -> None:
        """Starts filling."""
        self._thread.start()

    @property
    def pipeline(self) -> Pipeline:
        """The model that the next batch is filled for."""
        return self._pipeline

    def switch(self, pipeline: Pipeline) -> Pipeline | None:
        """Fills for another model from the next batch on; batches of the old one come out first.

        Returns the old one if no batch was filled for it since its own switch: nobody will hand it over, so close it.
        """
        with self._switching:
            old, used = self._pipeline, self._used
            self._pipeline, self._used = pipeline, False
        return None if used else old

    def take(self, timeout_s: float = _TICK_S) -> Batch | None:
        """The next batch; None when none comes in time. `done` must follow each."""
        return self._ready.get(timeout_s)

    def done(self) -> None:
        """The batch that was taken has run; its buffer is free."""
        self._buffers.release()

    @property
    def finished(self) -> bool:
        """Nothing more will come: every camera has ended and the last batch was taken."""
        return self._ready.finished

    def stop(self) -> list[Frame]:
        """Stops filling; returns the frames of batches that nobody took."""
        self._stop.set()
        self._changed.set()
        self._ready.close()
        self._buffers.release()
        if self._thread.ident is not None:
            self._thread.join(_END_S)
        left = []
        while batch := self._ready.get(timeout_s=0):
            left += [row.frame for row in batch.rows]
        return [*left, *self._unqueued]

    def _run(self) -> None:
        try:
            while self._buffer_is_free() and (waiting := self._frames(self._pipeline.batch)):
                while waiting:
                    self._unqueued = waiting  # until somebody took them over
                    taken = self._fill(waiting)
                    if not taken:
                        return
                    waiting = waiting[taken:]
                    if waiting and not self._buffer_is_free():
                        self._unqueued = waiting
                        return
                self._unqueued = []
        except Exception as error:  # noqa: BLE001  a defect must end the daemon loudly, not leave it without frames
            self.error = error
        finally:
            self._ready.close()

    def _buffer_is_free(self) -> bool:
        """Waits for a buffer, before frames are taken: those that wait in their slots stay fresh. False after a stop."""
        self._buffers.acquire()
        return not self._stop.is_set()

    def _fill(self, frames: Sequence[Frame]) -> int:
        """Prepares a batch of the first frames; of how many, 0 once nobody takes any more."""
        with self._switching:
            pipeline, self._used = self._pipeline, True
        self.busy_s = time.monotonic()
        batch = pipeline.prepare(pipeline.next_of(frames), self._regions)
        self.busy_s = None
        return len(batch.rows) if self._ready.put(batch) else 0

    def _frames(self, most: int) -> list[Frame]:
        """One frame at least, up to `most`, each of another camera; empty once all have ended or a stop was asked for."""
        frames: list[Frame] = []
        while len(frames) < most and not self._stop.is_set():
            self._changed.clear()
            if found := self._next(frames):
                frames.append(found)
            elif len(frames) >= sum(not capture.finished for capture in self._captures):
                break  # whoever is left is in the batch already
            elif not frames:
                self._changed.wait(_TICK_S)
            elif (rest_s := self._wait_s - (time.monotonic() - frames[0].captured_monotonic_s)) > 0:
                self._changed.wait(rest_s)
            else:
                break
        return frames

    def _next(self, taken: Sequence[Frame]) -> Frame | None:
        """The waiting frame of the camera that was served longest ago and is not in the batch yet."""
        cameras = {frame.camera for frame in taken}
        for capture in sorted(self._captures, key=lambda capture: self._served.get(capture.name, -1)):
            if capture.name in cameras or (frame := capture.queue.get(timeout_s=0)) is None:
                continue
            self.looked_s = time.monotonic()
            self._turn += 1
            self._served[capture.name] = self._turn
            if self._worth_a_look(frame):
                return frame
            self.dropped[capture.name]["motion"] += 1
            self._changed.set()  # a file has its next frame at once
        return None

    def _worth_a_look(self, frame: Frame) -> bool:
        gate = self._gates.get(frame.camera)
        if gate is None:
            return True
        region = region_of(frame.size_wh, self._regions.get(frame.camera))
        return gate.passes(cropped(frame.picture, region), frame.captured_monotonic_s)
