"""Supervised fine-tuning of a detector on few labels."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.accuracy import Accuracy, evaluate
from calibration.labels import Dataset, load_dataset
from converters.checkpoint import HELD_OUT, Checkpoint, load_checkpoint, save_checkpoint
from converters.errors import CheckpointError
from converters.resnet import RESNET_MODELS
from edge.errors import TrainingError
from edge.mean_teacher import PoolSpec, PoolTeacher, mixed
from edge.pool_light import PoolLight
from edge.processes import Precision, detection_loss, launched_fabric, several
from edge.snapshot import Snapshot
from edge.torch_detector import batch_detector, torch_detector
from edge.training import Budget, Run, adamw, check_run_folder, memory_told, train_epoch, with_training
from edge.training_images import BatchSpec, TrainingImage, training_image, training_loader
from edge.yolo import WeightAverage, build_detector, family_of, inject, weight_average
from runtime.files import sha256_of_file
from runtime.preprocess import STRIDE, Preprocess
from runtime.progress import Progress

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric
    from torch.utils.data import DataLoader
    from ultralytics.nn.tasks import DetectionModel


DETECTOR = "detector.pt"
_WEIGHT_DECAY = 5e-4
_REMEDIES = "lower it, lower --imgsz, or take a smaller --model"
_PLAIN_SHARE = 0.2  # of the epochs, at the end, without mosaic: the model then sees pictures as the camera gives them


@dataclass(frozen=True, slots=True)
class FinetuneRequest:
    """A fine-tuning run.

    Attributes:
        data: data.yaml with `train` and `val`.
        out: run folder; `detector.pt` appears there.
        model: architecture.
        init: weights to start from, in the order they are injected (a detector, then a backbone); none = scratch.
        imgsz: side of the square input in pixels.
        batch, epochs, lr, seed: the usual.
        freeze: share of the epochs, from the first on, in which the backbone stays as it is, whole epochs, rounded
            up; 1 trains neck and head only.
        layer_decay: learning rate of a layer over that of the one behind it, 1 for the same in all: layers near the input
            hold what all pictures have in common, and few labels would spoil it (as in BEiT, arXiv 2106.08254).
        precision: of the arithmetic, as Lightning Fabric names it.
        eval_every: epochs between looks at the held-out images; 0 for the last epoch only.
        confidence: threshold that F1 is told at.
        light_pool: a pool whose light half of the labelled images are given; None leaves them as they are.
        until_s: of that pool, frames captured up to this Unix time; None for all.
        pool: unlabeled frames that take part, see `edge.mean_teacher`; None for labels alone.
        pool_share: of a batch's pictures that are such frames, between 0 and 1.
        burn_in: share of the run with labels alone, 0 to 1.
        resume: go on with the run in `out`.
    """

    data: Path
    out: Path
    model: str = "yolo11n"
    init: tuple[Path, ...] = ()
    imgsz: int = 640
    batch: int = 16
    epochs: int = 50
    lr: float = 1e-3
    seed: int = 0
    freeze: float = 0.0
    layer_decay: float = 1.0
    precision: Precision = "32-true"
    eval_every: int = 0
    confidence: float = 0.25
    light_pool: Path | None = None
    until_s: float | None = None
    resume: bool = False
    pool: Path | None = None
    pool_share: float = 0.5
    burn_in: float = 0.5


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
        CheckpointError: weights of another architecture.
        TrainingError: nothing to resume, a folder in use, a loss that is not finite.
    """
    import torch

    _check(request)
    dataset = load_dataset(request.data)
    digest = data_digest(dataset)
    fabric = launched_fabric(request.precision)
    detector = build_detector(request.model, dataset.names, request.seed)
    lineage = {**_inject_all(detector, request), **_lineage(request, dataset, digest)}
    detector.to(device=fabric.device, memory_format=torch.channels_last)
    optimizer = adamw(_rates(detector, request), _WEIGHT_DECAY)
    loaders = _Loaders(dataset, request)
    steps_an_epoch = loaders.steps
    ema = weight_average(detector, request.epochs * steps_an_epoch)
    teacher = _pool_teacher(request, dataset, ema, request.epochs * steps_an_epoch)
    stateful = {"detector": detector, "ema": ema.ema, **({"pool": teacher} if teacher else {})}
    run = Run(request.out, stateful, optimizer, Budget(request.epochs, request.lr), request.seed)
    run.start(_fingerprint(request, dataset, digest), resume=request.resume)
    found: Accuracy | None = None
    left = (request.epochs - run.epoch) * steps_an_epoch
    with memory_told(request.batch, _REMEDIES), Progress("finetune", left) as progress:
        ema.updates = run.epoch * steps_an_epoch
        for epoch in run.epochs(steps_an_epoch):
            _train_mode(detector, request, epoch)
            frames = teacher.samples(epoch * steps_an_epoch) if teacher else ()
            figures = train_epoch(run, loaders.of(epoch, frames), _loss(detector, ema, fabric), progress)
            figures |= _believed(teacher)
            if _is_due(epoch, request) and dataset.val:
                found = _evaluate(ema.ema, dataset, request)
                figures |= {"map50_95": found.map50_95, "f1": found.f1}
            run.finish_epoch(_checkpoint(ema.ema, dataset, request, lineage), figures)
    if found is None and dataset.val:
        found = _evaluate(ema.ema, dataset, request)
    measured = {f"{HELD_OUT}{name}": str(value) for name, value in found.as_dict().items()} if found else {}
    path = request.out / DETECTOR
    save_checkpoint(path, with_training(_checkpoint(ema.ema, dataset, request, {**lineage, **measured}), None))
    if teacher:
        for name in teacher.damaged:
            sys.stderr.write(f"left out, damaged: {name}\n")
        Snapshot(request.out).remove()
    return Finetuned(path, found, run.extra.get("figures", []))


def _check(request: FinetuneRequest) -> None:
    """Whether the run can start, before the data is read and long before the first checkpoint."""
    if request.imgsz % STRIDE:
        raise TrainingError(
            f"--imgsz must be a multiple of {STRIDE}, but got {request.imgsz}; try {-(-request.imgsz // STRIDE) * STRIDE}"
        )
    if several():
        raise TrainingError("fine-tuning runs in one process; start it without torchrun")
    check_run_folder(request.out, resume=request.resume)


def _lineage(request: FinetuneRequest, dataset: Dataset, digest: str) -> dict[str, str]:
    return {
        "labels_sha256": digest,
        "labels": str(len(dataset.train)),
        "finetune_epochs": str(request.epochs),
        "finetune_seed": str(request.seed),
    }


def _fingerprint(request: FinetuneRequest, dataset: Dataset, digest: str) -> dict[str, str | float]:
    """What must be the same for a resumed run to be the run that was interrupted."""
    return {
        "model": request.model, "data": digest, "names": ", ".join(dataset.names), "imgsz": request.imgsz, "batch": request.batch,
        "init": ", ".join(sha256_of_file(path)[:12] for path in request.init), "freeze": request.freeze,
        "layer_decay": request.layer_decay, "precision": request.precision,
        "light_pool": f"{request.light_pool} until {request.until_s}",
        "pool": f"{request.pool} × {request.pool_share} from {request.burn_in}" if request.pool else "",
    }  # fmt: skip


class _Loaders:
    """With mosaic, and without for the last epochs; each made once for the frames that stand beside the labels.

    Attributes:
        steps: batches in an epoch, with frames or without.
    """

    def __init__(self, dataset: Dataset, request: FinetuneRequest) -> None:
        self._request, self._names = request, dataset.names
        self._relight = PoolLight(request.light_pool, request.until_s, request.seed) if request.light_pool else None
        self._labels = [training_image(item) for item in dataset.train]
        self._frames: tuple[TrainingImage, ...] = ()
        self._made: dict[bool, DataLoader[object]] = {}
        self.steps = max(1, len(self._labels) // request.batch)

    def of(self, epoch: int, frames: tuple[TrainingImage, ...]) -> DataLoader[object]:
        """The epoch's loader, its order depending on seed and epoch only."""
        if frames is not self._frames:
            self._frames = frames
            self._made.clear()
        plain = epoch >= self._request.epochs - max(1, round(_PLAIN_SHARE * self._request.epochs))
        if plain not in self._made:
            self._made[plain] = self._make(not plain)
        loader = self._made[plain]
        if loader.generator is not None:
            loader.generator.manual_seed(self._request.seed * 1_000_003 + epoch)
        return loader

    def _make(self, mosaic: bool) -> DataLoader[object]:
        request = self._request
        spec = BatchSpec(request.imgsz, request.batch, request.seed, mosaic, self.steps if self._frames else None)
        return training_loader(mixed(self._labels, self._frames, request.pool_share), self._names, spec, self._relight)


def _inject_all(detector: DetectionModel, request: FinetuneRequest) -> dict[str, str]:
    """Injects every `init`, tells how many tensors, and returns the lineage of what was injected."""
    lineage: dict[str, str] = {}
    for path in request.init:
        source = load_checkpoint(path)
        try:
            told = inject(detector, source, request.model)
        except CheckpointError as error:
            raise CheckpointError(f"--init {path}: {error}") from error
        sys.stderr.write(f"injected {source.kind} {path}: {told}\n")
        lineage |= {**source.lineage, f"init_{source.kind}": str(told)}
    return lineage


def _rates(detector: DetectionModel, request: FinetuneRequest) -> list[tuple[torch.nn.Module, float]]:
    """Each layer and its peak learning rate, highest at the head; the stages of a ResNet are layers too."""
    first, *others = detector.model
    layers = [*(first.m if request.model in RESNET_MODELS else [first]), *others]
    return [(layer, request.lr * request.layer_decay ** (len(layers) - 1 - depth)) for depth, layer in enumerate(layers)]


def _train_mode(detector: DetectionModel, request: FinetuneRequest, epoch: int) -> None:
    detector.train()
    frozen = epoch < math.ceil(request.freeze * request.epochs)
    for layer in list(detector.model)[: family_of(request.model).last_backbone_layer + 1]:
        layer.requires_grad_(not frozen)
        layer.train(not frozen)  # frozen weights with moving batch-norm statistics would not be frozen


def _pool_teacher(request: FinetuneRequest, dataset: Dataset, ema: WeightAverage, steps: int) -> PoolTeacher | None:
    if request.pool is None or (request.resume and (request.out / DETECTOR).is_file()):  # finished: nothing to look at
        return None
    resume = request.resume
    frames = Snapshot(request.out) if resume else Snapshot.take(request.pool, request.out, request.until_s, 1)
    spec = PoolSpec(request.batch, request.seed, steps, request.burn_in, request.pool_share)
    detect = batch_detector(ema.ema, Preprocess((request.imgsz, request.imgsz)))
    return PoolTeacher(frames, detect, dataset.train, len(dataset.names), spec)


def _believed(teacher: PoolTeacher | None) -> dict[str, float]:
    """Boxes that the teacher gave a frame of this round, for the log."""
    boxes = teacher.boxes_per_frame if teacher else None
    return {} if boxes is None else {"pseudo_boxes_per_frame": round(boxes, 3)}


def _loss(detector: DetectionModel, ema: WeightAverage, fabric: Fabric) -> Callable[[Mapping[str, torch.Tensor]], torch.Tensor]:
    import torch

    def loss_of(made: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ema.update(detector)  # of the step before; the last one is below a thousandth
        batch = fabric.to_device(made)
        images = batch["img"].contiguous(memory_format=torch.channels_last).float() / 255
        return detection_loss(detector, {**batch, "img": images}, fabric)

    return loss_of


def _is_due(epoch: int, request: FinetuneRequest) -> bool:
    last = epoch == request.epochs - 1
    return last or bool(request.eval_every and (epoch + 1) % request.eval_every == 0)


def _evaluate(detector: DetectionModel, dataset: Dataset, request: FinetuneRequest) -> Accuracy:
    detect = torch_detector(detector, Preprocess((request.imgsz, request.imgsz)))
    return evaluate(detect, dataset.val, dataset.names, request.confidence)


def _checkpoint(detector: DetectionModel, dataset: Dataset, request: FinetuneRequest, lineage: dict[str, str]) -> Checkpoint:
    return Checkpoint(request.model, dataset.names, detector.state_dict(), request.imgsz, "detector", lineage)


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
