from __future__ import annotations

import threading

from runtime.queues import BoundedQueue


def test_put__lossy_drops_the_oldest_and_counts() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, lossless=False)
    assert all(queue.put(value) for value in range(5))
    assert queue.dropped == 3
    assert [queue.get(0), queue.get(0), queue.get(0)] == [3, 4, None]


def test_put__lossless_waits_for_room() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, lossless=True)
    taken: list[int | None] = []
    writer = threading.Thread(target=lambda: [queue.put(value) for value in range(50)])
    writer.start()
    taken = [queue.get(5) for _ in range(50)]
    writer.join(5)
    assert taken == list(range(50))
    assert queue.dropped == 0


def test_close__frees_a_waiting_writer_and_keeps_what_is_inside() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1, lossless=True)
    queue.put(1)
    results: list[bool] = []
    writer = threading.Thread(target=lambda: results.append(queue.put(2)))
    writer.start()
    queue.close()
    writer.join(5)
    assert results == [False]
    assert not queue.finished
    assert queue.get() == 1
    assert queue.get() is None
    assert queue.finished
