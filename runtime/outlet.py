"""The one thread that hands results to sinks and collector, behind a bounded queue."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from runtime.errors import EdgeloopError
from runtime.pipeline import Result
from runtime.queues import BoundedQueue
from runtime.sinks import Sink
from runtime.threads import LeftThread

log = logging.getLogger(__name__)

QUEUE_SIZE = 32  # frames; three seconds of one camera at 10/s while a disk stalls


class Outlet:
    """Emits every result to every sink in order.

    Lossy: a stalled disk costs results (counted), never inference. Lossless (files at full speed): inference waits.
    """

    def __init__(self, sinks: Sequence[Sink], annotate: Callable[[Result], Result], *, lossless: bool) -> None:
        self._sinks, self._annotate = sinks, annotate
        self._queue: BoundedQueue[Result] = BoundedQueue(QUEUE_SIZE, lossless=lossless)
        self._thread = LeftThread(target=self._run, name="outlet")
        self.failed = 0
        self.error: Exception | None = None
        self._unemitted = 0

    def start(self) -> None:
        """Starts emitting."""
        self._thread.start()

    def put(self, result: Result, patient: Callable[[], bool] = lambda: True) -> bool:
        """Hands over one result; False when a defect has ended the outlet, see `error`.

        A lossless outlet waits for its sinks as long as `patient` says so.
        """
        return self._queue.put(result, patient)

    @property
    def dropped(self) -> int:
        """Results that no sink saw because the sinks were too slow."""
        return self._queue.dropped + self._unemitted

    def close(self, timeout_s: float | None = None) -> None:
        """Emits what is queued, then closes the sinks; what a stuck sink holds up longer than `timeout_s` is counted and told."""
        self._queue.close()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._unemitted = len(self._queue)
            log.error("a sink is stuck; %d results were not written, check its disk or server", self._unemitted)
            return
        for sink in self._sinks:
            try:
                sink.close()
            except EdgeloopError as error:
                log.error("%s", error)

    def _run(self) -> None:
        try:
            while (result := self._queue.get()) is not None:
                annotated = self._annotate(result)
                for sink in self._sinks:
                    self._emit(sink, annotated)
        except Exception as error:  # noqa: BLE001  a defect here must end the daemon loudly, not leave it running deaf
            self.error = error
        finally:
            self._queue.close()  # nobody may wait for a thread that is gone

    def _emit(self, sink: Sink, result: Result) -> None:
        try:
            sink.emit(result)
        except EdgeloopError as error:
            if not self.failed:
                log.error("%s; detection goes on", error)
            self.failed += 1
