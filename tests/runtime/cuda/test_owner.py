from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, cast

import pytest

from runtime.cuda.driver import Cuda
from runtime.cuda.owner import Owner
from runtime.errors import BackendError, DeviceLostError


class Opened:
    """Counts what the owner does with CUDA itself; nothing of CUDA is needed for that."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.closed = 0

    def open(self) -> Cuda:
        self.threads.append(threading.current_thread())
        return cast(Cuda, self)

    def close(self) -> None:
        self.threads.append(threading.current_thread())
        self.closed += 1


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
def owner(opened: Opened) -> Iterator[Owner]:
    owner = Owner("test owner", opened.open)
    yield owner
    owner.close()


def test_call__on_one_thread_of_its_own(owner: Owner, opened: Opened) -> None:
    threads = {owner.call(lambda _: threading.current_thread()) for _ in range(5)}
    owner.close()
    assert threads == set(opened.threads) == {opened.threads[0]}
    assert threading.current_thread() not in threads
    assert not opened.threads[0].is_alive()
    assert opened.closed == 1


def test_call__in_the_order_of_each_caller(owner: Owner) -> None:
    done: list[tuple[int, int]] = []

    def caller(name: int) -> None:
        for index in range(200):
            owner.call(noting(name, index))

    def noting(name: int, index: int) -> Callable[[Cuda], None]:
        return lambda _: done.append((name, index))

    callers = [threading.Thread(target=caller, args=(name,)) for name in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    assert len(done) == 800
    for name in range(4):
        assert [index for who, index in done if who == name] == list(range(200))


def test_call__what_is_raised_comes_back_and_the_owner_goes_on(owner: Owner) -> None:
    def lost(_: Cuda) -> NoReturn:
        raise DeviceLostError("the GPU failed")

    with pytest.raises(DeviceLostError, match="the GPU failed"):
        owner.call(lost)
    assert owner.call(lambda _: 3) == 3


def test_call__from_inside_is_refused_rather_than_a_deadlock(owner: Owner) -> None:
    with pytest.raises(BackendError, match="waits for itself"):
        owner.call(lambda _: owner.call(lambda _: None))


def test_owner__what_opening_raises_is_the_callers() -> None:
    def refused() -> Cuda:
        raise BackendError("there is no NVIDIA GPU here")

    before = threading.active_count()
    with pytest.raises(BackendError, match="there is no NVIDIA GPU here"):
        Owner("test owner", refused)
    assert threading.active_count() == before


def test_close__finishes_what_is_queued_and_refuses_more(owner: Owner, opened: Opened) -> None:
    begun, go_on, done = threading.Event(), threading.Event(), []

    def slow(_: Cuda) -> None:
        begun.set()
        go_on.wait(10)
        done.append(1)

    calling = threading.Thread(target=owner.call, args=(slow,))
    calling.start()
    begun.wait(10)
    closing = threading.Thread(target=owner.close)
    closing.start()
    go_on.set()
    closing.join(10)
    calling.join(10)
    assert (done, opened.closed) == ([1], 1)
    owner.close()
    with pytest.raises(BackendError, match="is closed"):
        owner.call(lambda _: None)
    assert opened.closed == 1
