from __future__ import annotations

import numpy as np
import pytest

from calibration.accuracy import Pair, accuracy
from calibration.breakdown import breakdown, confusion
from runtime.detections import Detections

NAMES = ("bolt", "nut", "never")
Row = tuple[tuple[float, float, float, float], float, int]


def boxes(*rows: Row) -> Detections:
    xyxy = np.array([row[0] for row in rows], np.float32).reshape(-1, 4)
    return Detections(xyxy, np.array([row[1] for row in rows], np.float32), np.array([row[2] for row in rows], np.int32))


SMALL, MEDIUM, LARGE = (0, 0, 20, 20), (100, 100, 150, 150), (200, 200, 400, 400)


@pytest.fixture
def pairs() -> list[Pair]:
    """One image without a mistake; one with a bolt taken for a nut, a large nut missed, and a box on nothing."""
    return [
        (boxes((SMALL, 1, 0)), boxes((SMALL, 0.9, 0))),
        (boxes((MEDIUM, 1, 0), (LARGE, 1, 1)), boxes((MEDIUM, 0.8, 1), ((500, 0, 560, 50), 0.7, 0), (LARGE, 0.1, 1))),
        (boxes(), boxes()),
    ]


def test_confusion__what_is_there_against_what_was_found(pairs: list[Pair]) -> None:
    table = confusion([(truth, found.above(0.25)) for truth, found in pairs], len(NAMES))
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[0, 1] = expected[1, 3] = expected[3, 0] = 1
    np.testing.assert_array_equal(table, expected)


def test_breakdown__classes_and_sizes_make_up_the_whole(pairs: list[Pair]) -> None:
    told, whole = breakdown(pairs, NAMES, 0.25), accuracy(pairs, NAMES, 0.25)
    bolt, nut, never = told.classes
    assert [row.boxes for row in told.classes] == [2, 1, 0]
    assert (bolt.precision, bolt.recall, nut.precision, nut.recall) == (0.5, 0.5, 0.0, 0.0)
    assert (bolt.map50_95 + nut.map50_95) / 2 == pytest.approx(whole.map50_95)
    assert never.map50_95 == 0
    assert [(row.boxes, row.recall) for row in told.sizes] == [(1, 1.0), (1, 0.0), (1, 0.0)]
    assert told.sizes[0].map50_95 == pytest.approx(1.0)
    assert told.mistakes == (0, 4, 0)
    assert told.worst(5) == [1]


def test_breakdown__intervals_hold_the_figure_and_shrink_with_more_images() -> None:
    rng = np.random.default_rng(0)

    def image() -> Pair:
        truth = boxes((SMALL, 1, 0), (LARGE, 1, 1))
        return truth, boxes(*[row for row in ((SMALL, 0.9, 0), (LARGE, 0.8, 1)) if rng.random() < 0.7])

    few, many = [image() for _ in range(12)], [image() for _ in range(200)]
    widths = []
    for pairs in (few, many):
        told, whole = breakdown(pairs, NAMES[:2], 0.25), accuracy(pairs, NAMES[:2], 0.25)
        assert told.map_interval[0] <= whole.map50_95 <= told.map_interval[1]
        assert told.f1_interval[0] <= whole.f1 <= told.f1_interval[1]
        widths.append(told.map_interval[1] - told.map_interval[0])
    assert widths[1] < 0.5 * widths[0]
