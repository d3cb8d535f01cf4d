"""What an accuracy is made of: classes, sizes, confusions, and the images with the most mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import Pair, coco_precisions, f1_at, mean_of_known
from calibration.bootstrap import REPLICATES, MatchedPairs
from calibration.matching import match_boxes
from runtime.detections import Detections

# COCO's, by area of the true box in pixels of the image.
SIZES = {"small (below 32²)": 32**2, "medium (below 96²)": 96**2, "large": 10**10}


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class; shares are 0 to 1, and at the deployed threshold where they depend on one.

    Attributes:
        name: of the class.
        boxes: true ones.
        map50_95, map50: average precision.
        precision, recall, f1: at IoU .50.
    """

    name: str
    boxes: int
    map50_95: float
    map50: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class SizeRow:
    """True boxes of one size; `recall` at the deployed threshold, at IoU .50."""

    name: str
    boxes: int
    map50_95: float
    map50: float
    recall: float


@dataclass(frozen=True, slots=True)
class Breakdown:
    """What is told beside an `Accuracy`.

    Attributes:
        classes, sizes: see there; those without a true box have 0 everywhere.
        map_interval, f1_interval: 95 % of a bootstrap over the images.
        confusion: boxes, (classes + 1, classes + 1): row what is there, column what was found; the last is nothing.
        mistakes: boxes missed and boxes too many of each image.
    """

    classes: tuple[ClassRow, ...]
    sizes: tuple[SizeRow, ...]
    map_interval: tuple[float, float]
    f1_interval: tuple[float, float]
    confusion: tuple[tuple[int, ...], ...]
    mistakes: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def worst(self, count: int) -> list[int]:
        """The images with the most mistakes, the worst first; none without a mistake."""
        order = sorted(range(len(self.mistakes)), key=lambda index: -self.mistakes[index])
        return [index for index in order[:count] if self.mistakes[index]]


def breakdown(pairs: Sequence[Pair], names: Sequence[str], confidence: float, seed: int = 0) -> Breakdown:
    """Takes (truth, found) pairs apart, one per image; `found` reaches down to `EVALUATION_CONFIDENCE`."""
    precisions = coco_precisions(pairs, names)
    shown = [(truth, found.above(confidence)) for truth, found in pairs]
    matches = [match_boxes(found, truth)[0] for truth, found in shown]
    return Breakdown(
        tuple(_class_row(index, name, pairs, precisions, confidence) for index, name in enumerate(names)),
        tuple(_size_row(index, name, shown, matches, precisions) for index, name in enumerate(SIZES)),
        _map_interval(pairs, seed),
        _f1_interval(shown, matches, seed),
        tuple(tuple(row) for row in confusion(shown, len(names)).tolist()),
        tuple(
            len(truth) + len(found) - 2 * int((index >= 0).sum()) for (truth, found), index in zip(shown, matches, strict=True)
        ),
    )


def confusion(pairs: Sequence[Pair], classes: int) -> NDArray[np.int64]:
    """Boxes by true and found class, matched by place alone at IoU .50; the last row and column are nothing."""
    table = np.zeros((classes + 1, classes + 1), np.int64)
    for truth, found in pairs:
        index, _ = match_boxes(_of_one_class(found), _of_one_class(truth))
        there = np.where(index >= 0, truth.class_id[index] if len(truth) else classes, classes)
        np.add.at(table, (there, found.class_id), 1)
        missed = np.setdiff1d(np.arange(len(truth)), index)
        np.add.at(table, (truth.class_id[missed], np.full(len(missed), classes)), 1)
    return table


def _of_one_class(boxes: Detections) -> Detections:
    return Detections(boxes.xyxy, boxes.confidence, np.zeros_like(boxes.class_id))


def _class_row(index: int, name: str, pairs: Sequence[Pair], precisions: NDArray[np.float64], confidence: float) -> ClassRow:
    own = [(truth[truth.class_id == index], found[found.class_id == index]) for truth, found in pairs]
    precision, recall, f1 = f1_at(own, confidence)
    curve = precisions[:, :, index, 0]
    boxes = sum(len(truth) for truth, _ in own)
    return ClassRow(name, boxes, mean_of_known(curve), mean_of_known(curve[0]), precision, recall, f1)


def _size_row(
    index: int, name: str, shown: Sequence[Pair], matches: Sequence[NDArray[np.intp]], precisions: NDArray[np.float64]
) -> SizeRow:
    limits = [0, *SIZES.values()]
    boxes = hits = 0
    for (truth, _), match in zip(shown, matches, strict=True):
        sides = truth.xyxy[:, 2:] - truth.xyxy[:, :2]
        area = sides[:, 0] * sides[:, 1]
        chosen = (area >= limits[index]) & (area <= limits[index + 1])  # a box on the limit counts on both sides, as COCO's
        boxes += int(chosen.sum())
        hits += int(chosen[match[match >= 0]].sum())
    curve = precisions[:, :, :, index + 1]
    return SizeRow(name, boxes, mean_of_known(curve), mean_of_known(curve[0]), hits / max(boxes, 1))


def _map_interval(pairs: Sequence[Pair], seed: int) -> tuple[float, float]:
    matched, rng = MatchedPairs(pairs), np.random.default_rng(seed)
    values = [matched.map50_95(_weights(rng, len(pairs))) for _ in range(REPLICATES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _f1_interval(shown: Sequence[Pair], matches: Sequence[NDArray[np.intp]], seed: int) -> tuple[float, float]:
    hits = np.array([(match >= 0).sum() for match in matches])
    boxes = np.array([len(truth) + len(found) for truth, found in shown])
    rng = np.random.default_rng(seed)
    draws = [_weights(rng, len(shown)) for _ in range(REPLICATES)]
    low, high = np.percentile([2 * (weights @ hits) / max(weights @ boxes, 1) for weights in draws], [2.5, 97.5])
    return float(low), float(high)


def _weights(rng: np.random.Generator, images: int) -> NDArray[np.intp]:
    return np.bincount(rng.integers(0, images, images), minlength=images)
