"""When an engine's work is captured and replayed; what CUDA makes of it is for a machine with a GPU (test_gpu)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

import pytest

from runtime.cuda.driver import Graph, Stream
from runtime.cuda.replay import Replay
from runtime.errors import BackendError, DeviceLostError


class Recorded:
    """A stream that says what was asked of it, or refuses to capture."""

    def __init__(self, refuses: BackendError | None = None) -> None:
        self.said: list[str] = []
        self._refuses = refuses

    def capture(self, work: Callable[[], None]) -> Graph:
        self.said.append("begin")
        work()
        self.said.append("end")
        if self._refuses:
            raise self._refuses
        return cast(Graph, _Launched(self.said, f"graph {self.said.count('end')}"))


class _Launched:
    def __init__(self, said: list[str], name: str) -> None:
        self._said, self._name = said, name

    def launch(self) -> None:
        self._said.append(self._name)

    def free(self) -> None:
        self._said.append(f"free {self._name}")


def replayed(stream: Recorded) -> Replay:
    return Replay(cast(Stream, stream), lambda pointer: stream.said.append(f"work {pointer}"))


def test_run__once_as_it_is_then_captured_then_replayed() -> None:
    stream = Recorded()
    replay = replayed(stream)
    for _ in range(4):
        replay.run(1)
    assert stream.said == ["work 1", "begin", "work 1", "end", "graph 1", "graph 1", "graph 1"]


def test_run__another_buffer_is_another_graph() -> None:
    stream = Recorded()
    replay = replayed(stream)
    for pointer in (1, 2, 1, 2, 1, 2):
        replay.run(pointer)
    assert stream.said[:2] == ["work 1", "work 2"]
    assert stream.said[-2:] == ["graph 1", "graph 2"]
    replay.free()
    assert stream.said[-2:] == ["free graph 2", "free graph 1"]


def test_run__what_cannot_be_captured_runs_as_it_is_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    stream = Recorded(BackendError("operation not permitted when stream is capturing"))
    replay = replayed(stream)
    with caplog.at_level(logging.WARNING):
        for pointer in (1, 1, 1, 2, 2):
            replay.run(pointer)
    assert stream.said == ["work 1", "begin", "work 1", "end", "work 1", "work 1", "work 2", "work 2"]
    assert [record.getMessage() for record in caplog.records] == [
        "no CUDA graph, each inference is launched kernel by kernel, which is slower: operation not permitted when stream is capturing"
    ]


def test_run__a_lost_device_is_no_reason_to_go_on() -> None:
    replay = replayed(Recorded(DeviceLostError("the GPU failed")))
    replay.run(1)
    with pytest.raises(DeviceLostError):
        replay.run(1)
