"""Unlabeled frames beside few labels: a teacher labels them, a student learns from both.

The line of Unbiased Teacher (Liu et al. 2021, arXiv 2102.09480) and STAC (Sohn et al. 2020, arXiv 2005.04757): the labels
alone first; the average of the weights then looks at frames as they are, and what it believes stands beside the labels in
every step that follows, under the same strong augmentation (mosaic, scale, colour). It looks again a few times while the
student learns, each time with thresholds of its own; to look at every step would make a step several times as dear.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.labels import LabeledImage
from edge.errors import TrainingError
from edge.leaks import HeldOut
from edge.pseudo_labels import DOUBT, class_thresholds, split_by_belief
from edge.snapshot import FRAMES, Snapshot
from edge.torch_detector import DetectBatch
from edge.training_images import TrainingImage
from runtime.detections import Detections
from runtime.errors import PoolError
from runtime.files import write_atomically
from runtime.images import MOST_DAMAGED
from runtime.progress import Progress

_STREAM = 7  # keeps our random numbers apart from those of order and augmentation


@dataclass(frozen=True, slots=True)
class Look:
    """One look of a teacher at the pool.

    Attributes:
        epoch: before which it looks, from 0.
        most: frames that are looked at, drawn at random.
        together: of them at once.
        seed: of the draw.
    """

    epoch: int
    most: int
    together: int
    seed: int


@dataclass(frozen=True, slots=True)
class Taught:
    """What a teacher gave.

    Attributes:
        images: frames to learn from.
        looked: frames that were looked at.
        boxes: that were believed.
        epoch: before which the teacher looked.
        seconds: that it took, with reading the images that frames must not show.
    """

    images: tuple[TrainingImage, ...]
    looked: int
    boxes: int
    epoch: int
    seconds: float = 0.0

    def write(self, path: Path) -> None:
        """Keeps it for a run that is resumed, and for who wants to look."""
        rows = [
            {
                "frame": image.item.path.name, "size_wh": image.size_wh, "class_id": image.item.class_id.tolist(),
                "cxcywh": image.item.cxcywh.tolist(), "hidden_xyxy": image.hidden.tolist(),
            }
            for image in self.images
        ]  # fmt: skip
        told = {"epoch": self.epoch, "looked": self.looked, "boxes": self.boxes, "seconds": self.seconds, "images": rows}
        write_atomically(path, json.dumps(told).encode())

    @classmethod
    def read(cls, path: Path) -> Taught:
        """What `write` wrote; the frames lie in the run's snapshot beside it."""
        found = json.loads(path.read_text(encoding="utf-8"))
        images = []
        for row in found["images"]:
            boxes, hidden = (np.array(row[key], np.float32).reshape(-1, 4) for key in ("cxcywh", "hidden_xyxy"))
            item = LabeledImage(path.parent / FRAMES / row["frame"], np.array(row["class_id"], np.int32), boxes)
            images.append(TrainingImage(item, (row["size_wh"][0], row["size_wh"][1]), hidden, of_pool=True))
        return cls(tuple(images), found["looked"], found["boxes"], found["epoch"], found.get("seconds", 0.0))


class Pupils:
    """The frames of a run that a teacher may label: not those that show a held-out image, which would make every later figure
    too good, nor those that show a labelled one, whose objects are known better.
    """

    def __init__(
        self, frames: Snapshot, labels: Sequence[LabeledImage], held_out: Sequence[LabeledImage], classes: int
    ) -> None:
        """Reads the pictures that frames must not show.

        Args:
            frames: the run's.
            labels: what stands beside them, at least one.
            held_out: what nothing may be learnt from.
            classes: how many there are.

        Raises:
            SourceError: a damaged image.
        """
        self._frames, self._labels, self._classes = frames, labels, classes
        self._held_out, self._labelled = (HeldOut([item.path for item in part]) for part in (held_out, labels))
        self._out: set[int] = set()  # positions of frames that were left out, and told
        self._damaged: set[int] = set()  # those of them that cannot be read

    def taught(self, detect: DetectBatch, look: Look) -> Taught:
        """What a detector believes of them; damaged frames, and those that show a held-out image, are named on stderr, once.

        A frame of which nothing is believed is no frame without objects: it is left out, as often as labelled frames show some.

        Raises:
            TrainingError: too many frames are damaged.
        """
        rng = np.random.default_rng((look.seed, _STREAM, look.epoch))
        seen = self._seen(detect, rng.permutation(len(self._frames)).tolist(), look)
        counts = np.bincount(np.concatenate([item.class_id for item in self._labels]), minlength=self._classes)
        thresholds = class_thresholds([found for _, _, found in seen], counts / len(self._labels))
        empty = sum(not len(item.class_id) for item in self._labels) / len(self._labels)
        images, boxes = [], 0
        for position, size, found in seen:
            sure, unsure = split_by_belief(found, thresholds)
            boxes += len(sure)
            if len(sure) or rng.random() < empty:
                images.append(_image(self._frames, position, size, sure, unsure))
        return Taught(tuple(images), len(seen), boxes, look.epoch)

    def _seen(self, detect: DetectBatch, order: Sequence[int], look: Look) -> list[tuple[int, tuple[int, int], Detections]]:
        """Position, size and detections of the first frames in the order that may be learnt from."""
        seen: list[tuple[int, tuple[int, int], Detections]] = []
        with Progress("teacher", min(look.most, len(order))) as progress:
            for images in self._batches(order, look):
                for (position, image), each in zip(images.items(), detect(list(images.values())), strict=True):
                    seen.append((position, (image.shape[1], image.shape[0]), each.above(DOUBT)))
                progress.advance("", len(images))
        return seen

    def _batches(self, order: Sequence[int], look: Look) -> Iterator[dict[int, NDArray[np.uint8]]]:
        """As large in a run that is resumed, which finds anew what is left out, as in one that was not cut: what a network sees
        in a picture depends on how many lie beside it, in the last digits.
        """
        images: dict[int, NDArray[np.uint8]] = {}
        taken, damaged, asked = 0, 0, 0
        for position in order:
            if taken == look.most:
                break
            asked += 1
            image = None if position in self._out else self._readable(position)
            damaged += position in self._damaged
            if image is None or not self._is_new(position, image):
                continue
            images[position] = image
            taken += 1
            if len(images) == look.together:
                yield images
                images = {}
        if damaged > MOST_DAMAGED * asked:
            raise TrainingError(
                f"{damaged} of {asked} frames are damaged; find and remove them with: edge pool check POOL --repair, and start a "
                "new run in another --out"
            )
        if images:
            yield images

    def _readable(self, position: int) -> NDArray[np.uint8] | None:
        try:
            return self._frames.read(position)
        except PoolError:
            sys.stderr.write(f"left out, damaged: {self._frames.name(position)}\n")
            self._damaged.add(position)
            self._out.add(position)
            return None

    def _is_new(self, position: int, image: NDArray[np.uint8]) -> bool:
        shown = self._held_out.shown_by(image)
        if shown is not None:
            sys.stderr.write(f"left out, shows the held-out image {shown.name}: {self._frames.name(position)}\n")
        elif self._labelled.shown_by(image) is None:
            return True
        self._out.add(position)
        return False


def _image(frames: Snapshot, position: int, size: tuple[int, int], sure: Detections, unsure: Detections) -> TrainingImage:
    xyxy = _shares(sure, size)
    cxcywh = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1)
    item = LabeledImage(frames.path(position), sure.class_id, cxcywh)
    return TrainingImage(item, size, _shares(unsure, size), of_pool=True)


def _shares(found: Detections, size: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes as shares of width and height, cut at the frame's edges."""
    return np.clip(found.xyxy / np.array([*size, *size], np.float32), 0, 1)
