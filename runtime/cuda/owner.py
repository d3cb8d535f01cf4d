"""The thread that owns things of CUDA: they are made, used and freed there and nowhere else.

A context is current on a thread, pycuda frees only on the thread that allocated, and a capture in thread-local mode must
begin and end on one thread. An engine has one owner and the uploader of its inputs another, so that a frame is sent to
the GPU while the engine's owner sleeps until a batch is done. Both hold the device's one primary context.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from runtime.cuda.driver import Cuda, open_cuda
from runtime.errors import BackendError
from runtime.threads import LeftThread

T = TypeVar("T")
Work = Callable[[Cuda], T]


class Owner:
    """Runs closures on its own thread, one after the other, in the order in which they came."""

    def __init__(self, name: str, opened: Callable[[], Cuda] = open_cuda) -> None:
        """Starts the thread and opens CUDA on it.

        Raises:
            BackendError, MissingPackageError: whatever `opened` raises; the thread has then ended.
        """
        self._work: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._gate, self._closed = threading.Lock(), False
        ready: Future[None] = Future()
        self._thread = LeftThread(target=self._serve, name=name, args=(opened, ready))
        self._thread.start()
        try:
            ready.result()
        except BaseException:
            self._closed = True
            self._thread.join()
            raise

    def call(self, work: Work[T]) -> T:
        """Runs `work` on the owner's thread; what it returns or raises comes back here.

        Raises:
            BackendError: the owner is closed, or this is its own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            raise BackendError(f"{self._thread.name} waits for itself; please report this")
        done: Future[T] = Future()
        with self._gate:  # so that nothing is queued behind the end
            if self._closed:
                raise BackendError(f"{self._thread.name} is closed; open the model again")
            self._work.put((work, done))
        return done.result()

    def close(self) -> None:
        """Lets what is queued finish, lets go of CUDA and ends the thread. Again is nothing."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
            self._work.put(None)
        self._thread.join()

    def _serve(self, opened: Callable[[], Cuda], ready: Future[None]) -> None:
        try:
            cuda = opened()
        except BaseException as error:  # noqa: BLE001  # it is the caller's
            ready.set_exception(error)
            return
        ready.set_result(None)
        while (item := self._work.get()) is not None:
            _run(*item, cuda)
            del item  # a closure must not keep its buffers alive while this thread waits
        released: Future[None] = Future()
        _run(lambda opened: opened.close(), released, cuda)  # a lost device cannot be let go of; the process ends


def _run(work: Work[T], done: Future[T], cuda: Cuda) -> None:
    try:
        done.set_result(work(cuda))
    except BaseException as error:  # noqa: BLE001  # it is the caller's
        done.set_exception(error)
