"""A bounded queue between threads that either drops the oldest and counts it, or waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_ASK_S = 0.2


class BoundedQueue(Generic[T]):
    """First in, first out, at most `size` items, one lock.

    A lossy queue never blocks its writer: a full one drops its oldest item and counts it.
    A lossless one blocks the writer until there is room or the queue is closed.
    """

    def __init__(self, size: int, *, lossless: bool) -> None:
        self._size, self._lossless = size, lossless
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.dropped = 0

    def put(self, item: T, patient: Callable[[], bool] = lambda: True) -> bool:
        """Adds an item; False when the queue is closed and the item was not taken.

        A lossless queue that is full asks `patient` a few times a second; once it says no, the oldest item goes.
        """
        with self._changed:
            while self._lossless and len(self._items) >= self._size and not self._closed and patient():
                self._changed.wait(_ASK_S)
            if self._closed:
                return False
            if len(self._items) >= self._size:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify_all()
            return True

    def get(self, timeout_s: float | None = None) -> T | None:
        """The oldest item; None after `timeout_s`, or when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items) or self._closed, timeout_s)
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Lets waiting writers go and takes nothing more; what is inside can still be taken out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._items)

    @property
    def finished(self) -> bool:
        """Closed and empty."""
        with self._changed:
            return self._closed and not self._items
