"""Unlabeled frames beside few labels: a teacher labels them, a student learns from both.

The line of STAC (Sohn et al. 2020, arXiv 2005.04757) and Unbiased Teacher (arXiv 2102.09480): the labels alone first; the
average of the weights then looks at frames as they are, and what it believes stands beside the labels in every step that is
left, under the same strong augmentation (mosaic, scale, colour). It looks once: a teacher that moves with every step makes a
step several times as dear, and in our pilots gave less.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.labels import LabeledImage
from edge.errors import TrainingError
from edge.leaks import HeldOut
from edge.pseudo_labels import DOUBT, class_thresholds, split_by_belief
from edge.snapshot import FRAMES, MOST_DAMAGED, Snapshot
from edge.torch_detector import DetectBatch
from edge.training_images import TrainingImage
from runtime.detections import Detections
from runtime.errors import PoolError
from runtime.files import write_atomically
from runtime.progress import Progress

_STREAM = 7  # keeps our random numbers apart from those of order and augmentation


@dataclass(frozen=True, slots=True)
class Look:
    """How a teacher goes about it.

    Attributes:
        most: frames that are looked at, drawn at random.
        together: of them at once.
        seed: of the draw.
        held_out: pictures that frames must not show.
    """

    most: int
    together: int
    seed: int
    held_out: tuple[Path, ...] = ()


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

    def write(self, path: Path) -> None:
        """Keeps it for a run that is resumed, and for who wants to look."""
        rows = [
            {
                "frame": image.item.path.name, "size_wh": image.size_wh, "class_id": image.item.class_id.tolist(),
                "cxcywh": image.item.cxcywh.tolist(), "hidden_xyxy": image.hidden.tolist(),
            }
            for image in self.images
        ]  # fmt: skip
        write_atomically(path, json.dumps({"looked": self.looked, "boxes": self.boxes, "images": rows}).encode())

    @classmethod
    def read(cls, path: Path) -> Taught:
        """What `write` wrote; the frames lie in the run's snapshot beside it."""
        found = json.loads(path.read_text(encoding="utf-8"))
        images = []
        for row in found["images"]:
            boxes, hidden = (np.array(row[key], np.float32).reshape(-1, 4) for key in ("cxcywh", "hidden_xyxy"))
            item = LabeledImage(path.parent / FRAMES / row["frame"], np.array(row["class_id"], np.int32), boxes)
            images.append(TrainingImage(item, (row["size_wh"][0], row["size_wh"][1]), hidden, of_pool=True))
        return cls(tuple(images), found["looked"], found["boxes"])


def teach(frames: Snapshot, detect: DetectBatch, labels: Sequence[LabeledImage], classes: int, look: Look) -> Taught:
    """Labels frames; damaged ones, and those that show a held-out image, are left out and named on stderr.

    A frame of which nothing is believed is no frame without objects: it is left out, as often as labelled frames show some.

    Raises:
        TrainingError: too many frames are damaged.
    """
    rng = np.random.default_rng((look.seed, _STREAM))
    chosen = sorted(rng.permutation(len(frames))[: look.most].tolist())
    seen = _seen(frames, detect, chosen, look)
    counts = np.bincount(np.concatenate([item.class_id for item in labels]), minlength=classes)
    thresholds = class_thresholds([found for _, _, found in seen], counts / len(labels))
    empty = sum(not len(item.class_id) for item in labels) / len(labels)
    images, boxes = [], 0
    for position, size, found in seen:
        sure, unsure = split_by_belief(found, thresholds)
        boxes += len(sure)
        if len(sure) or rng.random() < empty:
            images.append(_image(frames, position, size, sure, unsure))
    return Taught(tuple(images), len(seen), boxes)


def _seen(
    frames: Snapshot, detect: DetectBatch, chosen: Sequence[int], look: Look
) -> list[tuple[int, tuple[int, int], Detections]]:
    """Position, size and detections of the frames that are whole and show nothing held out."""
    held_out = HeldOut(look.held_out)
    seen: list[tuple[int, tuple[int, int], Detections]] = []
    damaged: list[str] = []
    with Progress("teacher", len(chosen)) as progress:
        for begin in range(0, len(chosen), look.together):
            chunk = chosen[begin : begin + look.together]
            images: dict[int, NDArray[np.uint8]] = {}
            for position in chunk:
                try:
                    image = frames.read(position)
                except PoolError:
                    damaged.append(frames.name(position))
                    continue
                shown = held_out.shown_by(image)
                if shown is None:
                    images[position] = image
                else:
                    sys.stderr.write(f"left out, shows the held-out image {shown.name}: {frames.name(position)}\n")
            found = detect(list(images.values())) if images else []
            for (position, image), each in zip(images.items(), found, strict=True):
                seen.append((position, (image.shape[1], image.shape[0]), each.above(DOUBT)))
            progress.advance("", len(chunk))
    if len(damaged) > MOST_DAMAGED * len(chosen):
        raise TrainingError(
            f"{len(damaged)} of {len(chosen)} frames are damaged, first {damaged[0]}; find and remove them with: edge pool check "
            "POOL --repair, and start a new run"
        )
    for name in damaged:
        sys.stderr.write(f"left out, damaged: {name}\n")
    return seen


def _image(frames: Snapshot, position: int, size: tuple[int, int], sure: Detections, unsure: Detections) -> TrainingImage:
    xyxy = _shares(sure, size)
    cxcywh = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1)
    item = LabeledImage(frames.path(position), sure.class_id, cxcywh)
    return TrainingImage(item, size, _shares(unsure, size), of_pool=True)


def _shares(found: Detections, size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes as shares of width and height, cut at the frame's edges."""
    return np.clip(found.xyxy / np.array([*size, *size], np.float32), 0, 1)
