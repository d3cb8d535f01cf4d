"""Supervised fine-tuning of a detector on few labels."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.accuracy import Accuracy, evaluate
from calibration.labels import Dataset, load_dataset
from converters.checkpoint import HELD_OUT, Checkpoint, save_checkpoint
from edge.errors import TrainingError
from edge.finetune_request import LOOKS, FinetuneRequest, check
from edge.injection import inject_all
from edge.lineage import LABELS_SHA256, seen_labels, with_seen
from edge.loader_processes import killed_told, signals_wait, without_advice
from edge.pool_light import PoolLight
from edge.pool_teacher import PSEUDO_LABELS, TEACHER, PoolTeacher
from edge.processes import detection_loss, launched_fabric
from edge.run_folder import run_folder
from edge.self_training import Taught
from edge.snapshot import Snapshot
from edge.torch_detector import torch_detector
from edge.training import Budget, Run, adamw, memory_told, seed_everything, single_value_told, train_epoch, with_training
from edge.training_images import BatchSpec, TrainingImage, refuse_damaged, training_loader, whole_images
from edge.yolo import build_detector, family_of, layers_of, weight_average
from runtime.files import sha256_of_file
from runtime.preprocess import Preprocess
from runtime.progress import Progress

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric
    from ultralytics.nn.tasks import DetectionModel

    from edge.yolo import WeightAverage


DETECTOR = "detector.pt"
LAST_LOOK = ("last_look_frames", "last_look_boxes")  # in the lineage: what the teacher looked at, and believed, last
_LIGHT = "light.json"
_WEIGHT_DECAY = 5e-4
_REMEDIES = "lower it or --imgsz, give --activation-checkpointing, or take a smaller --model"
_FRAMES_STREAM = 500_009  # keeps the order of frames apart from that of labels
_PLAIN_SHARE = 0.2  # of the epochs, at the end, without mosaic: the model then sees pictures as the camera gives them


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What a run gave.

    Attributes:
        checkpoint: path of `detector.pt`.
        accuracy: on the held-out images; None when there are none.
        curve: one record an epoch (`epoch`, `loss`, and `map50_95`, `f1` where it was evaluated).
    """

    checkpoint: Path
    accuracy: Accuracy | None
    curve: list[Mapping[str, float]]


def finetune(request: FinetuneRequest) -> Finetuned:
    """Trains and writes `out/detector.pt`.

    Raises:
        DataError: unusable labels.
        SourceError: a damaged image.
        PoolError: no pool, or an empty one.
        CheckpointError: weights of another architecture, or a teacher that cannot teach these classes.
        TrainingError: settings that do not go together, nothing to resume, a folder in use, out of memory, too many damaged
            frames, or a loss that is not finite.
    """
    check(request)
    with run_folder(request.out, resume=request.resume):
        if not request.resume:
            for name in (PSEUDO_LABELS, _LIGHT):  # of a run that was cut before its first saving
                (request.out / name).unlink(missing_ok=True)
        dataset = load_dataset(request.data)
        teacher = PoolTeacher(request, dataset.names)
        if request.pool and not request.resume:
            Snapshot.take(request.pool, request.out, request.until_s, 1)
        done = _train(request, dataset, teacher)
        if request.pool:
            Snapshot.remove(request.out)
        return done


@dataclass(frozen=True, slots=True)
class _Prepared:
    """All that the epochs work on.

    Attributes:
        labels: the labelled images, to be trained on.
        dataset: the same with what is held out.
        ema: average of the detector's weights, which is released.
    """

    fabric: Fabric
    labels: Sequence[TrainingImage]
    dataset: Dataset
    lineage: dict[str, str]
    detector: DetectionModel
    ema: WeightAverage
    run: Run


def _prepared(request: FinetuneRequest, dataset: Dataset, teacher: PoolTeacher) -> _Prepared:
    import torch

    refuse_damaged(dataset.val, "held-out")
    labels = whole_images(dataset.train)
    dataset = replace(dataset, train=tuple(image.item for image in labels))
    if both := {item.path.resolve() for item in dataset.train} & {item.path.resolve() for item in dataset.val}:
        sys.stderr.write(f"{len(both)} held-out images are trained on as well: every figure will be too good; see edge split\n")
    digest = data_digest(dataset)
    fabric = launched_fabric(request.precision)
    detector = build_detector(request.model, dataset.names, request.seed)
    of_init = inject_all(detector, request.init, request.model).lineage
    lineage = _lineage(of_init, teacher.lineage(digest), request, len(labels)) | {LABELS_SHA256: digest}
    detector.to(device=fabric.device, memory_format=torch.channels_last)
    optimizer = adamw(_rates(detector, request), _WEIGHT_DECAY)
    ema = weight_average(detector, request.epochs * request.steps(len(labels)))
    if request.activation_checkpointing:
        from edge.activation_checkpointing import checkpoint_activations

        checkpoint_activations(layers_of(detector, request.model))
    run = Run(request.out, {"detector": detector, "ema": ema.ema}, optimizer, Budget(request.epochs, request.lr), request.seed)
    run.start(_fingerprint(request, dataset, digest), resume=request.resume)
    return _Prepared(fabric, labels, dataset, lineage, detector, ema, run)


def _train(request: FinetuneRequest, dataset: Dataset, teacher: PoolTeacher) -> Finetuned:
    path = request.out / DETECTOR
    prepared = _prepared(request, dataset, teacher)
    run = prepared.run
    if run.epoch == request.epochs and path.is_file():
        sys.stderr.write(f"the run in {request.out} is finished; to train longer, start another with --init {path}\n")
        return Finetuned(path, _evaluated(request, prepared), run.extra.get("figures", []))
    if request.pool:
        Snapshot(request.out)  # frames that are gone are told now, not when their turn comes
    epochs, steps = _Epochs(request, prepared, teacher), request.steps(len(prepared.labels))
    with (
        memory_told(f"--batch {request.batch}", _REMEDIES),
        single_value_told(),
        killed_told(),
        Progress("finetune", (request.epochs - run.epoch) * steps) as progress,
    ):
        prepared.ema.updates = run.epoch * steps
        for epoch in run.epochs(steps):
            figures = epochs.train(epoch, progress)
            run.finish_epoch(epochs.checkpoint(), figures)
    found = epochs.found or _evaluated(request, prepared)
    _release(epochs.checkpoint(), request, found)
    return Finetuned(path, found, run.extra.get("figures", []))


class _Epochs:
    """The epochs of a run: what they learn from, and how good the average of the weights is after them.

    Attributes:
        found: the last evaluation, if there was one.
    """

    def __init__(self, request: FinetuneRequest, prepared: _Prepared, teacher: PoolTeacher) -> None:
        self._request, self._prepared, self._teacher = request, prepared, teacher
        self._loaders = self._loaders_of(())
        self._looked = -1  # the epoch of the look that the loaders' frames are of
        self.found: Accuracy | None = None

    def train(self, epoch: int, progress: Progress) -> dict[str, float]:
        """One epoch, and its figures for the log."""
        prepared = self._prepared
        look = max((each for each in self._request.looks if each <= epoch), default=-1)
        figures = self._look(look, epoch) if look > self._looked else {}
        _train_mode(prepared.detector, self._request, epoch)
        loss_of = _loss(prepared.detector, prepared.fabric, self._request)
        update_average = partial(prepared.ema.update, prepared.detector)
        figures = train_epoch(prepared.run, self._loaders.of(epoch), loss_of, update_average, progress) | figures
        if _is_due(epoch, self._request) and (found := _evaluated(self._request, prepared)):
            self.found = found
            figures |= {"map50_95": found.map50_95, "f1": found.f1}
        return figures

    def _look(self, look: int, epoch: int) -> dict[str, float]:
        """The teacher looks at the pool, or what it believed is read again; what the look took."""
        average = self.checkpoint()
        if look == epoch and not self._request.teacher:  # one that is given looks once
            self._prepared.run.save(average)  # what the look before it gave is about to be overwritten
        taught, self._looked = self._teacher.taught(self._prepared.dataset, average, look), look
        self._loaders = self._loaders_of(taught.images)
        seed_everything(self._request.seed, epoch)  # as in a run that was cut and reads what was believed
        return {"looked_s": taught.seconds} if taught.epoch == epoch else {}

    def _loaders_of(self, frames: Sequence[TrainingImage]) -> _Loaders:
        return _Loaders(self._prepared.dataset.names, self._prepared.labels, frames, self._request)

    def checkpoint(self) -> Checkpoint:
        """The average of the weights."""
        names, lineage = self._prepared.dataset.names, self._prepared.lineage
        return Checkpoint(
            self._request.model, names, self._prepared.ema.ema.state_dict(), self._request.imgsz, "detector", lineage
        )


def _release(average: Checkpoint, request: FinetuneRequest, found: Accuracy | None) -> None:
    """Writes `detector.pt`, with what was measured in its lineage."""
    measured = {f"{HELD_OUT}{name}": str(value) for name, value in found.as_dict().items()} if found else {}
    if request.pool:
        believed = Taught.read(request.out / PSEUDO_LABELS)
        measured |= dict(zip(LAST_LOOK, map(str, (believed.looked, believed.boxes)), strict=True))
    released = replace(average, lineage={**average.lineage, **measured})
    save_checkpoint(request.out / DETECTOR, with_training(released, None))


def _lineage(
    of_init: Mapping[str, str], of_teacher: Mapping[str, str], request: FinetuneRequest, labels: int
) -> dict[str, str]:
    """What a detector began as, without how good that was and who taught it; who teaches this one, and by what."""
    begun = {key: value for key, value in of_init.items() if not key.startswith((HELD_OUT, TEACHER)) and key not in LAST_LOOK}
    told = {"labels": str(labels), "finetune_epochs": str(request.epochs), "finetune_seed": str(request.seed)}
    return with_seen({**begun, **of_teacher, **told}, seen_labels(of_init))


def _fingerprint(request: FinetuneRequest, dataset: Dataset, digest: str) -> dict[str, str | float]:
    """What must be the same for a resumed run to be the run that was interrupted."""
    taking_part: dict[str, str | float] = {
        "pool_ratio": request.pool_ratio, "burn_in": request.share_alone, "upright": request.upright,
        "teacher": sha256_of_file(request.teacher)[:12] if request.teacher else f"its own average, {LOOKS} looks",
    }  # fmt: skip
    return {
        "model": request.model, "labels": digest[:12], "names": ", ".join(dataset.names), "imgsz": request.imgsz, "batch": request.batch,
        "init": ", ".join(sha256_of_file(path)[:12] for path in request.init), "freeze": request.freeze,
        "layer_decay": request.layer_decay, "precision": request.precision, "workers": request.workers,
        # Which frames those are is in the run folder, whatever has become of the pool.
        "light_pool": request.light_pool is not None,
        "pool": request.pool is not None, **(taking_part if request.pool else {}),
    }  # fmt: skip


class _Loaders:
    """With mosaic, and without for the last epochs: labelled images, and frames beside them if there are some."""

    def __init__(
        self, names: Sequence[str], labels: Sequence[TrainingImage], frames: Sequence[TrainingImage], request: FinetuneRequest
    ) -> None:
        self._request = request
        light = request.light_pool
        relight = PoolLight.kept(request.out / _LIGHT, light, request.until_s, request.seed) if light else None
        steps = request.steps(len(labels))
        parts = [(labels, request.batch, None), (frames, request.frames_a_step, steps)]
        self._loaders = {
            mosaic: [
                training_loader(
                    images,
                    names,
                    BatchSpec(request.imgsz, batch, request.seed, mosaic, count, request.workers),
                    relight,
                )
                for images, batch, count in parts
                if images
            ]
            for mosaic in (True, False)
        }

    def of(self, epoch: int) -> Iterable[tuple[Any, ...]]:
        """The epoch's batches, of labels and of frames side by side, their order depending on seed and epoch only."""
        plain = epoch >= self._request.epochs - max(1, round(_PLAIN_SHARE * self._request.epochs))
        loaders = self._loaders[not plain]
        for number, loader in enumerate(loaders):
            if loader.generator is not None:
                loader.generator.manual_seed(self._request.seed * 1_000_003 + epoch + number * _FRAMES_STREAM)
        with without_advice(), signals_wait():
            begun = [iter(loader) for loader in loaders]
        return zip(*begun, strict=True)


def _rates(detector: DetectionModel, request: FinetuneRequest) -> list[tuple[torch.nn.Module, float]]:
    """Each layer and its peak learning rate, highest at the head."""
    layers = layers_of(detector, request.model)
    return [(layer, request.lr * request.layer_decay ** (len(layers) - 1 - depth)) for depth, layer in enumerate(layers)]


def _train_mode(detector: DetectionModel, request: FinetuneRequest, epoch: int) -> None:
    detector.train()
    frozen = epoch < math.ceil(request.freeze * request.epochs)
    for layer in list(detector.model)[: family_of(request.model).last_backbone_layer + 1]:
        layer.requires_grad_(not frozen)
        layer.train(not frozen)  # frozen weights with moving batch-norm statistics would not be frozen


def _loss(
    detector: DetectionModel, fabric: Fabric, request: FinetuneRequest
) -> Callable[[tuple[Mapping[str, torch.Tensor], ...]], torch.Tensor]:
    """Of labels, and of frames beside them; of those not where an object ends, unless a teacher that was given tells it: a run
    would hand its own wrong sides on (Unbiased Teacher, section 3.2).
    """
    import torch

    def loss_of(parts: tuple[Mapping[str, torch.Tensor], ...]) -> torch.Tensor:
        losses = []
        for number, made in enumerate(parts):
            batch = fabric.to_device(made)
            images = batch["img"].contiguous(memory_format=torch.channels_last).float() / 255
            losses.append(
                detection_loss(detector, {**batch, "img": images}, fabric, boxes=not number or request.teacher is not None)
            )
        return torch.stack(losses).sum()

    return loss_of


def _is_due(epoch: int, request: FinetuneRequest) -> bool:
    last = epoch == request.epochs - 1
    return last or bool(request.eval_every and (epoch + 1) % request.eval_every == 0)


def _evaluated(request: FinetuneRequest, prepared: _Prepared) -> Accuracy | None:
    """The average's accuracy on the held-out images, if there are some."""
    detect = torch_detector(prepared.ema.ema, Preprocess((request.imgsz, request.imgsz)))
    held_out = prepared.dataset.val
    return evaluate(detect, held_out, prepared.dataset.names, request.confidence) if held_out else None


def data_digest(dataset: Dataset) -> str:
    """SHA-256 over names and labels of the training images.

    Raises:
        TrainingError: there are none.
    """
    digest = hashlib.sha256()
    for item in dataset.train:
        digest.update(item.path.name.encode() + item.class_id.tobytes() + item.cxcywh.tobytes())
    if not dataset.train:
        raise TrainingError("there is no labelled image to train on; list some under `train` in data.yaml")
    return digest.hexdigest()
