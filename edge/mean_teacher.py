"""Unlabeled frames beside few labels: a teacher that is the student's average labels them, the student learns from both.

Unbiased Teacher (arXiv 2102.09480) in rounds: the labels alone first (burn-in); then, round by round, the average of the
student's weights looks at frames as they are, and what it believes stands beside the labels in the same batches, under the
same strong augmentation (mosaic, scale, colour), until it looks again. A batch costs what a batch of labels costs, and the
boxes of a round come from one teacher, so that thresholds can rest on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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

ROUNDS = 5  # in what is left of a run after the burn-in
_LOOKS = 2  # frames that are looked at for each one that a round has room for: mosaics show four pictures
_STREAM = 7  # keeps our random numbers apart from those of order and augmentation


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """How unlabeled frames take part.

    Attributes:
        batch: pictures of a step.
        seed: of the order of frames.
        steps: of the whole run.
        burn_in: share of the steps with labels alone, 0 to 1.
        share: of a batch's pictures that are frames, between 0 and 1.
    """

    batch: int
    seed: int
    steps: int
    burn_in: float
    share: float

    def round_of(self, step: int) -> int:
        """Counted from 0; -1 in the burn-in."""
        begin = self.burn_in * self.steps
        return -1 if step < begin else int((step - begin) / max(1.0, self.steps - begin) * ROUNDS)

    @property
    def frames_a_round(self) -> int:
        """How many frames the teacher looks at."""
        return max(1, round(_LOOKS * self.share * self.batch * self.steps * (1 - self.burn_in) / ROUNDS))


@dataclass(slots=True)
class _Taught:
    """What a round gave: the frames to learn from by position, and how many were looked at and believed.

    A box is (left, top, right, bottom) as shares of the frame.
    """

    round: int
    frames: list[tuple[int, tuple[int, int], list[int], list[list[float]], list[list[float]]]]
    looked: int
    boxes: int


class PoolTeacher:
    """Labels frames of the pool for a student.

    Attributes:
        damaged: names of frames that could not be read.
    """

    def __init__(
        self, frames: Snapshot, detect: DetectBatch, labels: Sequence[LabeledImage], classes: int, spec: PoolSpec
    ) -> None:
        """`detect` is the student's average, which goes on changing; `labels` are those that the student learns from."""
        self._frames, self._detect, self._spec = frames, detect, spec
        counts = np.bincount(np.concatenate([item.class_id for item in labels]), minlength=classes)
        self._boxes_per_frame = counts / len(labels)
        self._empty = sum(not len(item.class_id) for item in labels) / len(labels)
        self._taught = _Taught(-1, [], 0, 0)
        self._samples: tuple[TrainingImage, ...] = ()
        self.damaged: dict[str, None] = {}

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint: what a resumed run must know."""
        taught = self._taught
        return {"round": taught.round, "frames": taught.frames, "looked": taught.looked, "boxes": taught.boxes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self._taught = _Taught(state["round"], state["frames"], state["looked"], state["boxes"])
        self._samples = tuple(self._sample(*each) for each in self._taught.frames)

    def samples(self, step: int) -> tuple[TrainingImage, ...]:
        """Frames to learn from at a step of the run, with what is believed of them; none in the burn-in.

        The same tuple within a round; the first step of a round looks at new frames.

        Raises:
            TrainingError: too many frames are damaged.
        """
        number = self._spec.round_of(step)
        if number != self._taught.round:
            self._taught = self._teach(number)
            self._samples = tuple(self._sample(*each) for each in self._taught.frames)
        return self._samples

    @property
    def boxes_per_frame(self) -> float | None:
        """Believed of the frames that the round looked at; None in the burn-in."""
        return self._taught.boxes / self._taught.looked if self._taught.looked else None

    def _teach(self, number: int) -> _Taught:
        """Looks at a round's frames.

        A frame of which nothing is believed is no frame without objects: it is left out, as often as labelled frames show some.
        """
        positions = self._positions(number)
        sizes, found = [], []
        for begin in range(0, len(positions), self._spec.batch):
            chunk = positions[begin : begin + self._spec.batch]
            images = [(position, image) for position in chunk if (image := self._read(position)) is not None]
            sizes += [(position, (image.shape[1], image.shape[0])) for position, image in images]
            found += [each.above(DOUBT) for each in self._detect([image for _, image in images])] if images else []
        thresholds = class_thresholds(found, self._boxes_per_frame)
        rng = np.random.default_rng((self._spec.seed, _STREAM, number, 1))
        taught = _Taught(number, [], len(found), 0)
        for (position, size), detections in zip(sizes, found, strict=True):
            sure, unsure = split_by_belief(detections, thresholds)
            taught.boxes += len(sure)
            if len(sure) or rng.random() < self._empty:
                taught.frames.append((position, size, sure.class_id.tolist(), _shares(sure, size), _shares(unsure, size)))
        return taught

    def _positions(self, number: int) -> list[int]:
        """A round's frames: the pool in random order, round after round, every pass in its own order."""
        count, length = min(self._spec.frames_a_round, len(self._frames)), len(self._frames)
        orders: dict[int, NDArray[np.int64]] = {}
        chosen = []
        for place in range(number * count, (number + 1) * count):
            turn = place // length
            if turn not in orders:
                orders[turn] = np.random.default_rng((self._spec.seed, _STREAM, turn)).permutation(length)
            chosen.append(int(orders[turn][place % length]))
        return chosen

    def _read(self, position: int) -> NDArray[np.uint8] | None:
        """None for a damaged frame."""
        try:
            return self._frames.read(position)
        except PoolError:
            self.damaged[self._frames.name(position)] = None
        if len(self.damaged) > MOST_DAMAGED * len(self._frames):
            raise TrainingError(
                f"{len(self.damaged)} of {len(self._frames)} frames are damaged, first {next(iter(self.damaged))}; find and "
                "remove them with: edge pool check POOL --repair, and start a new run"
            )
        return None

    def _sample(
        self, position: int, size: tuple[int, int], classes: list[int], boxes: list[list[float]], hidden: list[list[float]]
    ) -> TrainingImage:
        xyxy = np.array(boxes, np.float32).reshape(-1, 4)
        cxcywh = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1)
        item = LabeledImage(self._frames.path(position), np.array(classes, np.int32), cxcywh)
        return TrainingImage(item, (size[0], size[1]), np.array(hidden, np.float32).reshape(-1, 4), of_pool=True)


def _shares(found: Detections, size: tuple[int, int]) -> list[list[float]]:
    """Boxes as shares of width and height, cut at the frame's edges."""
    shares: list[list[float]] = np.clip(found.xyxy / np.array([*size, *size], np.float32), 0, 1).tolist()
    return shares


def mixed(labels: Sequence[TrainingImage], frames: Sequence[TrainingImage], share: float) -> list[TrainingImage]:
    """Labels and frames, the fewer of them repeated, so that about `share` of the pictures are frames."""
    if not frames:
        return list(labels)
    times = len(frames) * (1 - share) / (share * len(labels))
    return [*labels] * max(1, round(times)) + [*frames] * max(1, round(1 / times))
