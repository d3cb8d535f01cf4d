from __future__ import annotations

import numpy as np
import pytest

from calibration.accuracy import Pair, coco_map
from calibration.bootstrap import MatchedPairs, drop_interval
from runtime.detections import Detections


def pairs(seed: int, noise: float, images: int = 12) -> list[Pair]:
    """Truth, and detections that jitter around it, miss some and invent some."""
    truth_rng, rng = np.random.default_rng(7), np.random.default_rng(seed)
    found = []
    for _ in range(images):
        count = int(truth_rng.integers(0, 6))
        corner = truth_rng.uniform(0, 200, (count, 2))
        boxes = np.concatenate([corner, corner + truth_rng.uniform(20, 80, (count, 2))], axis=1).astype(np.float32)
        label = truth_rng.integers(0, 3, count).astype(np.int32)
        truth = Detections(boxes, np.ones(count, np.float32), label)
        extra = rng.uniform(0, 150, (4, 2))
        invented = np.concatenate([extra, extra + 30], axis=1)
        seen = rng.random(count) > 0.2
        moved = boxes[seen] + rng.normal(0, noise, (int(seen.sum()), 4))
        xyxy = np.concatenate([np.sort(moved.reshape(-1, 2, 2), axis=1).reshape(-1, 4), invented]).astype(np.float32)
        scores = rng.uniform(0.01, 1, len(xyxy)).astype(np.float32)
        labels = np.concatenate([label[seen], rng.integers(0, 3, 4)]).astype(np.int32)
        found.append((truth, Detections(xyxy, scores, labels)))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_map50_95__as_coco_counts_it(seed: int) -> None:
    rows = pairs(seed, noise=2.0)
    ours = MatchedPairs(rows).map50_95(np.ones(len(rows), np.intp))
    assert ours == pytest.approx(coco_map(rows, ["a", "b", "c"])[0], abs=1e-6)
    assert 0.05 < ours < 0.95


def test_map50_95__a_weight_of_two_is_the_image_twice() -> None:
    rows = pairs(0, noise=2.0)
    weights = np.ones(len(rows), np.intp)
    weights[3] = 2
    twice = MatchedPairs([*rows, rows[3]]).map50_95(np.ones(len(rows) + 1, np.intp))
    assert MatchedPairs(rows).map50_95(weights) == pytest.approx(twice, abs=1e-9)


def test_drop_interval__around_the_loss_and_zero_for_the_same() -> None:
    good, bad = MatchedPairs(pairs(0, noise=0.5)), MatchedPairs(pairs(0, noise=8.0))
    assert drop_interval(good, good, seed=0, replicates=50) == (0.0, 0.0)
    low, high = drop_interval(good, bad, seed=0, replicates=100)
    ones = np.ones(good.images, np.intp)
    assert 0 < low < good.map50_95(ones) - bad.map50_95(ones) < high
    assert drop_interval(good, bad, seed=0, replicates=100) == (low, high)


def test_map50_95__nothing_true_is_zero() -> None:
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
    assert MatchedPairs([(empty, empty)]).map50_95(np.ones(1, np.intp)) == 0.0
