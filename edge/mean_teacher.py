"""Unlabeled frames beside few labels: a teacher that is the student's average labels them, the student learns from that.

Unbiased Teacher (arXiv 2102.09480) for a one-stage detector, as Efficient Teacher (arXiv 2302.07577): the labels alone first
(burn-in), then the teacher looks at a frame as it is, and the student at the same frame in other light, blurred, with holes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from calibration.labels import LabeledImage
from edge.errors import TrainingError
from edge.large_batch import statistics_kept
from edge.methods.views import import_albumentations, to_tensor
from edge.processes import detection_loss
from edge.pseudo_labels import DOUBT, ClassThresholds, believed, painted_over
from edge.snapshot import MOST_DAMAGED, Snapshot
from edge.torch_detector import canvas_detector
from runtime.detections import Detections
from runtime.errors import PoolError
from runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from ultralytics.nn.tasks import DetectionModel

_RAMP = 0.1  # of all steps: the weight of the frames grows that long after the burn-in
_STREAM = 7  # keeps our random numbers apart from those of order and augmentation


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """How unlabeled frames take part.

    Attributes:
        imgsz: side in pixels of the square input.
        batch: frames a step.
        seed: of order and views.
        steps: of the whole run.
        burn_in: share of the steps with labels alone, 0 to 1.
        weight: of the frames' loss beside the labels'.
    """

    imgsz: int
    batch: int
    seed: int
    steps: int
    burn_in: float
    weight: float


class PoolTeacher:
    """Gives the loss of a student on unlabeled frames.

    Attributes:
        thresholds: what is believed, by class.
        boxes: believed so far, for the log.
        frames: looked at so far.
        damaged: names of frames that could not be read.
    """

    def __init__(
        self, frames: Snapshot, teacher: DetectionModel, labels: Sequence[LabeledImage], classes: int, spec: PoolSpec
    ) -> None:
        """`teacher` is the student's average, which goes on changing; `labels` are those that the student learns from."""
        self._frames, self._spec = frames, spec
        self._preprocess = Preprocess((spec.imgsz, spec.imgsz))
        self._detect = canvas_detector(teacher, self._preprocess.scale)
        counts = np.bincount(np.concatenate([item.class_id for item in labels]), minlength=classes)
        self.thresholds = ClassThresholds(counts / len(labels))
        self._empty = sum(not len(item.class_id) for item in labels) / len(labels)
        self.boxes = self.frames = 0
        self.damaged: dict[str, None] = {}
        self._pass, self._order = -1, np.zeros(0, np.int64)
        albumentations = import_albumentations()
        self._strong = albumentations.Compose(
            [
                albumentations.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=0.8),
                albumentations.ToGray(p=0.2),
                albumentations.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
                albumentations.CoarseDropout((1, 4), (0.02, 0.12), (0.02, 0.12), fill=114, p=0.5),
            ]
        )

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint: what a resumed run must know."""
        return {"thresholds": self.thresholds.state_dict(), "boxes": self.boxes, "frames": self.frames}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` gave."""
        self.thresholds.load_state_dict(state["thresholds"])
        self.boxes, self.frames = int(state["boxes"]), int(state["frames"])

    def loss(self, student: DetectionModel, step: int, fabric: Fabric) -> torch.Tensor | None:
        """Of the step's frames, weighted; None in the burn-in, or when nothing is believed."""
        begin, ramp = self._spec.burn_in * self._spec.steps, max(1.0, _RAMP * self._spec.steps)
        if step < begin:
            return None
        images, targets = self._labelled(step)
        if not any(len(each) for each in targets):
            return None
        batch = fabric.to_device(as_batch(images, targets))
        batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        with statistics_kept(student):  # what is deployed must not be used to holes and grey patches
            loss = detection_loss(student, batch, fabric)
        share = len(images) / self._spec.batch
        weighted: torch.Tensor = self._spec.weight * share * min(1.0, (step - begin + 1) / ramp) * loss
        return weighted

    def _labelled(self, step: int) -> tuple[list[torch.Tensor], list[Detections]]:
        """The step's frames as the student sees them, and what the teacher believes of each.

        A frame of which nothing is believed is no frame without objects: it is left out, as often as labelled frames show some.
        """
        rngs = [np.random.default_rng((self._spec.seed, _STREAM, step, place)) for place in range(self._spec.batch)]
        weak = self._preprocess.buffer(self._spec.batch)
        for place, rng in enumerate(rngs):
            self._preprocess.letterbox(self._frame(step * self._spec.batch + place), weak[place])
            if rng.random() < 0.5:
                weak[place] = weak[place, :, ::-1].copy()
        found = self._detect(weak)
        self.thresholds.update([each.above(DOUBT) for each in found])
        shown, targets = [], []
        for canvas, detections, rng in zip(weak, found, rngs, strict=True):
            sure, unsure = believed(detections, self.thresholds)
            self.frames, self.boxes = self.frames + 1, self.boxes + len(sure)
            if not len(sure) and rng.random() >= self._empty:
                continue
            self._strong.set_random_seed(int(rng.integers(2**31)))
            rgb = np.ascontiguousarray(painted_over(canvas, unsure, sure)[..., ::-1])
            shown.append(to_tensor(self._strong(image=rgb)["image"]))
            targets.append(sure)
        return shown, targets

    def _frame(self, number: int) -> NDArray[np.uint8]:
        """The frame whose turn it is, or the next one that is not damaged; every pass over the pool has its own order."""
        if self._pass != number // len(self._frames):
            self._pass = number // len(self._frames)
            self._order = np.random.default_rng((self._spec.seed, _STREAM, self._pass)).permutation(len(self._frames))
        for later in range(len(self._frames)):
            position = int(self._order[(number + later) % len(self._frames)])
            try:
                return self._frames.read(position)
            except PoolError:
                self.damaged[self._frames.name(position)] = None
            if len(self.damaged) > MOST_DAMAGED * len(self._frames):
                break
        raise TrainingError(
            f"{len(self.damaged)} of {len(self._frames)} frames are damaged, first {next(iter(self.damaged))}; find and remove "
            "them with: edge pool check POOL --repair, and start a new run"
        )


def as_batch(images: Sequence[torch.Tensor], targets: Sequence[Detections]) -> dict[str, torch.Tensor]:
    """What an Ultralytics detector trains on: `img` float32 (b, 3, s, s), and class, box (centre, size, 0 to 1) and image
    of each target.
    """
    side = images[0].shape[1]
    xyxy = np.concatenate([each.xyxy for each in targets]) / side
    boxes = np.concatenate([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2]], axis=1).astype(np.float32)
    classes = np.concatenate([each.class_id for each in targets]).astype(np.float32)
    index = np.repeat(np.arange(len(targets), dtype=np.float32), [len(each) for each in targets])
    return {
        "img": torch.stack(list(images)), "cls": torch.from_numpy(classes)[:, None], "bboxes": torch.from_numpy(boxes),
        "batch_idx": torch.from_numpy(index),
    }  # fmt: skip
