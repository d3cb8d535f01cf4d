"""An engine's work captured into a CUDA graph: hundreds of launches become one."""

from __future__ import annotations

import logging
from collections.abc import Callable

from runtime.cuda.driver import Graph, Stream
from runtime.errors import BackendError, DeviceLostError

log = logging.getLogger(__name__)


class Replay:
    """Work on a stream that depends on one address and on nothing else that may change.

    The first time with an address it is done as it is, which lets the engine allocate and choose; the second time it is
    captured; afterwards the graph is launched. Another address is another graph.
    """

    def __init__(self, stream: Stream, work: Callable[[int], None]) -> None:
        self._stream, self._work = stream, work
        self._seen: set[int] = set()
        self._graphs: dict[int, Graph] = {}
        self._plain = False

    def run(self, pointer: int) -> None:
        """Puts the work for that address on the stream.

        Raises:
            BackendError, DeviceLostError: what the work itself raises.
        """
        if pointer in self._graphs:
            self._graphs[pointer].launch()
        elif pointer in self._seen and not self._plain and (graph := self._captured(pointer)):
            graph.launch()
        else:
            self._work(pointer)
            self._seen.add(pointer)

    def _captured(self, pointer: int) -> Graph | None:
        try:
            self._graphs[pointer] = self._stream.capture(lambda: self._work(pointer))
        except DeviceLostError:
            raise
        except BackendError as error:
            self._plain = True
            log.warning("no CUDA graph, each inference is launched kernel by kernel, which is slower: %s", error)
        return self._graphs.get(pointer)

    def free(self) -> None:
        """Gives the graphs back."""
        while self._graphs:
            self._graphs.popitem()[1].free()
