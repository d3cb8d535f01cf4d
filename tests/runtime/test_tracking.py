from __future__ import annotations

import numpy as np

from runtime.detections import Detections
from runtime.tracking import Tracker


def two(x: float) -> Detections:
    """One box that walks right, one that stands."""
    xyxy = np.array([[x, 10, x + 20, 50], [200, 10, 220, 50]], np.float32)
    return Detections(xyxy, np.array([0.9, 0.3], np.float32), np.array([0, 1], np.int32))


def ids(found: Detections) -> list[int]:
    assert found.track_id is not None
    return [int(track) for track in found.track_id]


def test_tracker__keeps_ids_and_order() -> None:
    tracker = Tracker(0.25)
    tracked = [ids(tracker.update(two(10.0 + 4 * step), 0, step / 10)) for step in range(12)]
    assert len(set(map(tuple, tracked[3:]))) == 1
    assert len(set(tracked[-1])) == 2
    assert min(tracked[-1]) >= 1


def test_tracker__a_new_epoch_never_uses_an_id_again() -> None:
    tracker = Tracker(0.25)
    first = [ids(tracker.update(two(10), 0, step / 10)) for step in range(4)][-1]
    second = [ids(tracker.update(two(10), 1, 1 + step / 10)) for step in range(4)][-1]
    assert not set(first) & set(second)
    assert min(second) > max(first)


def test_tracker__an_empty_frame_and_a_long_absence() -> None:
    tracker = Tracker(0.25)
    before = [ids(tracker.update(two(10), 0, step / 10)) for step in range(4)][-1]
    assert ids(tracker.update(Detections.empty(), 0, 0.5)) == []
    after = [ids(tracker.update(two(10), 0, 10 + step / 10)) for step in range(4)][-1]
    assert not set(before) & set(after)
