"""Which frames are looked at next: batches across cameras, filled on a thread of their own while the engine runs.

A camera's latest frame waits in its slot. The camera that was served longest ago comes first, so that under overload all
get the same share whatever their rates. A batch closes when it is full, or when its oldest frame has waited `wait_s`; an
engine that is busy is not waited for by filling early: two buffers, one under way, one being filled.
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
from runtime.regions import MotionGate, Region

_TICK_S = 0.2  # how long a stop request may wait while no frame comes


class Scheduler:
    """Hands out filled batches; the thread that takes them runs them.

    Attributes:
        dropped: frames that no model looked at, by camera and reason (`motion`).
        error: a defect that ended the thread.
    """

    def __init__(self, pipeline: Pipeline, wait_s: float, changed: threading.Event) -> None:
        """`changed` is set whenever a camera has a new frame or ends."""
        self.dropped: dict[str, Counter[str]] = {}
        self.error: Exception | None = None
        self._pipeline, self._wait_s, self._changed = pipeline, wait_s, changed
        self._captures: Sequence[Capture] = ()
        self._regions: Mapping[str, Region | None] = {}
        self._gates: dict[str, MotionGate] = {}
        self._served: dict[str, int] = {}
        self._turn = 0
        # The buffer that is being filled is not in the queue, so that the two of a pipeline are never exceeded.
        self._ready: BoundedQueue[Batch] = BoundedQueue(1, lossless=True)
        self._buffers = threading.Semaphore(Pipeline.buffers)
        self._unqueued: Sequence[Frame] = ()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def watch(self, captures: Sequence[Capture]) -> None:
        """Takes frames from these cameras from now on."""
        for capture in captures:
            self.dropped.setdefault(capture.name, Counter())
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

    def switch(self, pipeline: Pipeline) -> None:
        """Fills for another model from the next batch on; batches of the old one come out first."""
        self._pipeline = pipeline

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
            self._thread.join(timeout=3)
        left = []
        while batch := self._ready.get(timeout_s=0):
            left += [row.frame for row in batch.rows]
        return [*left, *self._unqueued]

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._buffers.acquire()
                pipeline = self._pipeline
                frames = self._frames(pipeline.batch)
                if not frames:
                    return
                if not self._ready.put(pipeline.prepare(frames, self._regions)):
                    self._unqueued = frames
                    return
        except Exception as error:  # noqa: BLE001  a defect must end the daemon loudly, not leave it without frames
            self.error = error
        finally:
            self._ready.close()

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
            if capture.name in cameras:
                continue
            while (frame := capture.queue.get(timeout_s=0)) is not None:
                if self._worth_a_look(frame):
                    self._turn += 1
                    self._served[capture.name] = self._turn
                    return frame
                self.dropped[capture.name]["motion"] += 1
        return None

    def _worth_a_look(self, frame: Frame) -> bool:
        gate = self._gates.get(frame.camera)
        return gate is None or gate.passes(frame.image, frame.captured_monotonic_s)
