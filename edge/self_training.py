"""Unlabeled frames beside few labels: a teacher labels them, a student learns from both.

The line of STAC (Sohn et al. 2020, arXiv 2005.04757) and Unbiased Teacher (arXiv 2102.09480): the labels alone first, to the
end of a schedule; the average of the weights then looks at frames as they are, and what it believes stands beside the labels
in the same batches, under the same strong augmentation (mosaic, scale, colour), for a second schedule. A teacher that moves
with every step was measured first: on few hundred frames it cost four times as much and lost accuracy (docs/study.md).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.labels import LabeledImage
from edge.errors import TrainingError
from edge.pseudo_labels import DOUBT, class_thresholds, split_by_belief
from edge.snapshot import MOST_DAMAGED, Snapshot
from edge.torch_detector import DetectBatch
from edge.training_images import TrainingImage
from runtime.detections import Detections
from runtime.errors import PoolError
from runtime.progress import Progress

_CHUNK = 16  # frames that are looked at together
_STREAM = 7  # keeps our random numbers apart from those of order and augmentation


@dataclass(frozen=True, slots=True)
class Taught:
    """What a teacher gave.

    Attributes:
        images: frames to learn from.
        looked: frames that were looked at.
        boxes: that were believed.
    """

    images: tuple[TrainingImage, ...]
    looked: int
    boxes: int


def teach(frames: Snapshot, detect: DetectBatch, labels: Sequence[LabeledImage], classes: int, most: int, seed: int) -> Taught:
    """Labels up to `most` frames, drawn at random; damaged ones are left out and named on stderr.

    A frame of which nothing is believed is no frame without objects: it is left out, as often as labelled frames show some.

    Raises:
        TrainingError: too many frames are damaged.
    """
    rng = np.random.default_rng((seed, _STREAM))
    chosen = sorted(rng.permutation(len(frames))[:most].tolist())
    positions, sizes, found = _look(frames, detect, chosen)
    counts = np.bincount(np.concatenate([item.class_id for item in labels]), minlength=classes)
    thresholds = class_thresholds(found, counts / len(labels))
    empty = sum(not len(item.class_id) for item in labels) / len(labels)
    images, boxes = [], 0
    for position, size, detections in zip(positions, sizes, found, strict=True):
        sure, unsure = split_by_belief(detections, thresholds)
        boxes += len(sure)
        if len(sure) or rng.random() < empty:
            images.append(_image(frames, position, size, sure, unsure))
    return Taught(tuple(images), len(found), boxes)


def _look(
    frames: Snapshot, detect: DetectBatch, chosen: Sequence[int]
) -> tuple[list[int], list[tuple[int, int]], list[Detections]]:
    """Position, size and detections of the frames that are whole."""
    positions: list[int] = []
    sizes: list[tuple[int, int]] = []
    found: list[Detections] = []
    damaged: list[str] = []
    with Progress("teacher", len(chosen)) as progress:
        for begin in range(0, len(chosen), _CHUNK):
            images: list[NDArray[np.uint8]] = []
            for position in chosen[begin : begin + _CHUNK]:
                try:
                    images.append(frames.read(position))
                    positions.append(position)
                except PoolError:
                    damaged.append(frames.name(position))
            sizes += [(image.shape[1], image.shape[0]) for image in images]
            found += [each.above(DOUBT) for each in detect(images)] if images else []
            progress.advance("", len(chosen[begin : begin + _CHUNK]))
    if len(damaged) > MOST_DAMAGED * len(chosen):
        raise TrainingError(
            f"{len(damaged)} of {len(chosen)} frames are damaged, first {damaged[0]}; find and remove them with: edge pool check "
            "POOL --repair, and start a new run"
        )
    for name in damaged:
        sys.stderr.write(f"left out, damaged: {name}\n")
    return positions, sizes, found


def _image(frames: Snapshot, position: int, size: tuple[int, int], sure: Detections, unsure: Detections) -> TrainingImage:
    xyxy = _shares(sure, size)
    cxcywh = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1)
    item = LabeledImage(frames.path(position), sure.class_id, cxcywh)
    return TrainingImage(item, size, _shares(unsure, size), of_pool=True)


def _shares(found: Detections, size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes as shares of width and height, cut at the frame's edges."""
    return np.clip(found.xyxy / np.array([*size, *size], np.float32), 0, 1)


def mixed(labels: Sequence[TrainingImage], frames: Sequence[TrainingImage], share: float) -> list[TrainingImage]:
    """Labels and frames, the fewer of them repeated, so that about `share` of the pictures are frames."""
    if not frames:
        return list(labels)
    times = len(frames) * (1 - share) / (share * len(labels))
    return [*labels] * max(1, round(times)) + [*frames] * max(1, round(1 / times))
