"""How sure is a difference in mAP? A paired bootstrap over images.

mAP is not a mean over images, so its interval needs the whole curve again for every resample. Matching is done once; a
resample only weighs the images. Arithmetic as pycocotools: ten IoU thresholds, 101 recall points, classes with truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import RECALLS, Pair
from runtime.detections import box_iou

REPLICATES = 200  # the interval's ends move by a few hundredths of a point from there on
_IOUS = np.linspace(0.5, 0.95, 10)
_MAX_DETECTIONS = 300


@dataclass(frozen=True, slots=True)
class _ClassMatches:
    """All boxes of one class, by falling score.

    Attributes:
        image: int (n,), which image.
        hit: bool (10, n), whether the box is a hit at each IoU threshold.
        truths: int (images,), how many true boxes each image has.
    """

    image: NDArray[np.intp]
    hit: NDArray[np.bool_]
    truths: NDArray[np.intp]


class MatchedPairs:
    """(truth, found) pairs, one per image, matched; mAP under any weights of the images."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self.images = len(pairs)
        known = sorted({int(label) for truth, _ in pairs for label in truth.class_id})
        self._classes = [_match_class(pairs, label) for label in known]

    def map50_95(self, weights: NDArray[np.intp]) -> float:
        """mAP50-95 when image i counts `weights[i]` times."""
        precisions = [_average_precision(matches, weights) for matches in self._classes if matches.truths @ weights]
        return float(np.mean(precisions)) if precisions else 0.0


def drop_interval(
    reference: MatchedPairs, candidate: MatchedPairs, seed: int, replicates: int = REPLICATES
) -> tuple[float, float]:
    """2.5th and 97.5th percentile of reference's mAP50-95 minus candidate's, over resampled images (the same for both)."""
    rng = np.random.default_rng(seed)
    drops = []
    for _ in range(replicates):
        weights = np.bincount(rng.integers(0, reference.images, reference.images), minlength=reference.images)
        drops.append(reference.map50_95(weights) - candidate.map50_95(weights))
    low, high = np.percentile(drops, [2.5, 97.5])
    return float(low), float(high)


def _match_class(pairs: Sequence[Pair], label: int) -> _ClassMatches:
    scores: list[NDArray[np.float32]] = []
    hits: list[NDArray[np.bool_]] = []
    images: list[NDArray[np.intp]] = []
    truths = np.zeros(len(pairs), np.intp)
    for index, (truth, found) in enumerate(pairs):
        true_xyxy = truth.xyxy[truth.class_id == label]
        order = np.argsort(-found.confidence, kind="stable")[:_MAX_DETECTIONS]
        order = order[found.class_id[order] == label]
        truths[index] = len(true_xyxy)
        scores.append(found.confidence[order])
        hits.append(_match_image(found.xyxy[order], true_xyxy))
        images.append(np.full(len(order), index, np.intp))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    return _ClassMatches(np.concatenate(images)[order], np.concatenate(hits, axis=1)[:, order], truths)


def _match_image(found_xyxy: NDArray[np.float32], true_xyxy: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(10, n): greedily by falling score, each true box once at each threshold."""
    hit = np.zeros((len(_IOUS), len(found_xyxy)), bool)
    if not len(true_xyxy) or not len(found_xyxy):
        return hit
    iou = box_iou(found_xyxy, true_xyxy)
    free = np.ones((len(_IOUS), len(true_xyxy)), bool)
    rows = np.arange(len(_IOUS))
    for column in np.flatnonzero(iou.max(axis=1) >= _IOUS[0]):
        open_iou = np.where(free, iou[column], -1.0)
        best = open_iou.argmax(axis=1)
        hit[:, column] = open_iou[rows, best] >= _IOUS
        free[rows[hit[:, column]], best[hit[:, column]]] = False
    return hit


def _average_precision(matches: _ClassMatches, weights: NDArray[np.intp]) -> float:
    """Mean over the IoU thresholds of the interpolated precision at 101 recalls."""
    counts = weights[matches.image]
    seen = np.maximum(np.cumsum(counts), 1)
    hits = np.cumsum(matches.hit * counts, axis=1)
    recall, precision = hits / (matches.truths @ weights), hits / seen
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for row in range(len(_IOUS)):
        place = np.searchsorted(recall[row], RECALLS, side="left")
        inside = place < recall.shape[1]
        total += float(envelope[row, place[inside]].sum()) / len(RECALLS)
    return total / len(_IOUS)
