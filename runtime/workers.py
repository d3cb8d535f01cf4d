"""Threads that run batches, as many at once as the engine has streams; outcomes come out in the order of the batches.

A CPU engine that spreads one frame over all cores stands still whenever one of its threads does, and something else always
wants a core: decoding, letterboxing. Frames on streams of their own wait for nobody (benchmarks/results/pipeline.json).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from runtime.frame import Frame
from runtime.pipeline import Batch, Result
from runtime.scheduler import Scheduler
from runtime.threads import LeftThread


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a batch: its results, or why it has none."""

    batch: Batch
    results: list[Result]
    error: Exception | None = None


class Workers:
    """Takes the scheduler's batches and runs them; `Scheduler.done` is to be called for each outcome once it is handled."""

    def __init__(self, scheduler: Scheduler, count: int) -> None:
        """`count` batches run at once."""
        self._scheduler = scheduler
        self._taking = threading.Lock()
        self._taken = self._told = 0
        self._running: dict[int, tuple[Batch, float]] = {}
        self._outcomes: dict[int, Outcome] = {}
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._alive = count
        self._threads = [LeftThread(target=self._run, name=f"worker-{index}") for index in range(count)]

    def start(self) -> None:
        """Starts running batches."""
        for thread in self._threads:
            thread.start()

    def next(self, timeout_s: float) -> Outcome | None:
        """The outcome of the next batch; None when there is none in time, or nothing more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._told in self._outcomes or not self._alive, timeout_s)
            outcome = self._outcomes.pop(self._told, None)
            self._told += outcome is not None
            return outcome

    @property
    def finished(self) -> bool:
        """Every camera has ended and the last outcome was told."""
        with self._changed:
            return not self._alive and not self._outcomes

    @property
    def busy_since_s(self) -> float | None:
        """`time.monotonic()` since when the oldest batch has been running; None while none is."""
        with self._changed:
            return min((since_s for _, since_s in self._running.values()), default=None)

    def stop(self, within_s: float) -> tuple[list[Outcome], list[Frame]]:
        """Takes no more batches and waits for those that run: the outcomes that are left, and frames that still run."""
        self._stop.set()
        until_s = time.monotonic() + within_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, until_s - time.monotonic()))
        with self._changed:
            left = [self._outcomes.pop(number) for number in sorted(self._outcomes)]
            return left, [row.frame for _, (batch, _) in sorted(self._running.items()) for row in batch.rows]

    @property
    def alive(self) -> bool:
        """Whether a thread may still use the engine."""
        return any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while not self._stop.is_set() and not self._scheduler.finished:
            if (taken := self._take()) is None:
                continue
            number, batch = taken
            try:
                outcome = Outcome(batch, batch.pipeline.run(batch))
            except Exception as error:  # noqa: BLE001  whoever asks for the outcome judges it
                outcome = Outcome(batch, [], error)
            with self._changed:
                del self._running[number]
                self._outcomes[number] = outcome
                self._changed.notify_all()
        with self._changed:
            self._alive -= 1
            self._changed.notify_all()

    def _take(self) -> tuple[int, Batch] | None:
        with self._taking:
            batch = self._scheduler.take()
            if batch is None:
                return None
            with self._changed:
                number, self._taken = self._taken, self._taken + 1
                self._running[number] = (batch, time.monotonic())
            return number, batch
