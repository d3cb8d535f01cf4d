"""Supervised fine-tuning of a detector on few labels."""

from __future__ import annotations

import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from calibration.accuracy import Accuracy, evaluate
from calibration.labels import Dataset, load_dataset
from converters.checkpoint import HELD_OUT, Checkpoint, detector_from_checkpoint, load_checkpoint, save_checkpoint
from converters.errors import CheckpointError
from converters.resnet import RESNET_MODELS
from edge.errors import TrainingError
from edge.fused_looks import fused_looks
from edge.pool_light import PoolLight
from edge.processes import Precision, detection_loss, launched_fabric, several
from edge.self_training import Look, Taught, mixed, teach
from edge.snapshot import FRAMES, Snapshot
from edge.torch_detector import batch_detector, torch_detector
from edge.training import LAST, Budget, Run, adamw, check_run_folder, memory_told, train_epoch, with_training
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
LABELS_ALONE = "labels"  # folder of the first part of a run with a pool
PSEUDO_LABELS = "pseudo_labels.json"
_TOGETHER = 16  # frames that the teacher looks at, at most
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
            up; 1 trains neck and head only. With a pool: of each of the two parts.
        layer_decay: learning rate of a layer over that of the one behind it, 1 for the same in all: layers near the input
            hold what all pictures have in common, and few labels would spoil it (as in BEiT, arXiv 2106.08254).
        precision: of the arithmetic, as Lightning Fabric names it.
        eval_every: epochs between looks at the held-out images; 0 for the last epoch only.
        confidence: threshold that F1 is told at.
        light_pool: a pool whose light half of the labelled images are given; None leaves them as they are.
        until_s: of both pools, frames captured up to this Unix time; None for all.
        pool: unlabeled frames that take part, see `edge.self_training`; None for labels alone.
        pool_share: of a batch's pictures that are such frames, between 0 and 1.
        burn_in: share of the epochs with labels alone before, in `out/labels`, between 0 and 1.
        upright: scenes have an up and a down, so the teacher does not look at frames upside down.
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
    upright: bool = False


@dataclass(frozen=True, slots=True)
class Finetuned:
    """What a run gave.

    Attributes:
        checkpoint: path of `detector.pt`.
        accuracy: on the held-out images; None when there are none.
        curve: one record an epoch (`epoch`, `loss`, and `map50_95`, `f1` where it was evaluated); with a pool those of the
            second part, the first part's are in `out/labels/log.jsonl`.
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
    return _with_frames(request) if request.pool else _train(request, None)


def has_begun(out: Path) -> bool:
    """Whether there is a run to resume in a folder, with a pool or without."""
    return (out / LAST).is_file() or (out / LABELS_ALONE / LAST).is_file()


def _with_frames(request: FinetuneRequest) -> Finetuned:
    """Labels alone first, to the end of a schedule; the detector labels frames, and goes on with both."""
    _check(request)
    if request.epochs == 1:
        raise TrainingError("--pool needs 2 epochs or more, since labels alone come first; raise --epochs")
    if not request.resume:
        (request.out / PSEUDO_LABELS).unlink(missing_ok=True)
        Snapshot.take(cast("Path", request.pool), request.out, request.until_s, 1)
    first = replace(request, pool=None, out=request.out / LABELS_ALONE, epochs=_alone(request))
    alone = _train(first, None).checkpoint
    second = replace(request, init=(alone,), epochs=request.epochs - first.epochs, resume=(request.out / LAST).is_file())
    done = _train(second, _taught(second))
    shutil.rmtree(request.out / FRAMES, ignore_errors=True)
    return done


def _alone(request: FinetuneRequest) -> int:
    """Epochs with labels alone; each part has one at least."""
    return min(request.epochs - 1, max(1, round(request.burn_in * request.epochs)))


def _taught(request: FinetuneRequest) -> Taught:
    """What the detector of `init` made of as many frames as the run has room for, mosaics counted; looked at once."""
    path = request.out / PSEUDO_LABELS
    if path.is_file():
        return Taught.read(path)
    dataset = load_dataset(request.data)
    teacher = detector_from_checkpoint(load_checkpoint(request.init[0])).to(launched_fabric().device)
    detect = fused_looks(batch_detector(teacher, Preprocess((request.imgsz, request.imgsz))), upright=request.upright)
    room = round(4 * request.pool_share * request.batch * request.epochs * _steps(len(dataset.train), request.batch))
    with memory_told(request.batch, _REMEDIES):
        look = Look(max(1, room), min(request.batch, _TOGETHER), request.seed)
        taught = teach(Snapshot(request.out), detect, dataset.train, len(dataset.names), look)
    taught.write(path)
    sys.stderr.write(f"the labels' detector believes {taught.boxes} boxes in {taught.looked} frames of the pool\n")
    return taught


def _train(request: FinetuneRequest, taught: Taught | None) -> Finetuned:
    """One schedule, over the labels and what stands beside them."""
    import torch

    _check(request)
    path = request.out / DETECTOR
    dataset = load_dataset(request.data)
    digest = data_digest(dataset)
    fabric = launched_fabric(request.precision)
    detector = build_detector(request.model, dataset.names, request.seed)
    lineage = {**_inject_all(detector, request), **_lineage(request, dataset, digest, taught)}
    detector.to(device=fabric.device, memory_format=torch.channels_last)
    optimizer = adamw(_rates(detector, request), _WEIGHT_DECAY)
    steps_an_epoch = _steps(len(dataset.train), request.batch)
    ema = weight_average(detector, request.epochs * steps_an_epoch)
    run = Run(request.out, {"detector": detector, "ema": ema.ema}, optimizer, Budget(request.epochs, request.lr), request.seed)
    run.start(_fingerprint(request, dataset, digest), resume=request.resume)
    if run.epoch == request.epochs and path.is_file():
        found = _evaluate(ema.ema, dataset, request) if dataset.val else None
        return Finetuned(path, found, run.extra.get("figures", []))
    path.unlink(missing_ok=True)  # of a run that was taken away
    loaders = _Loaders(dataset, taught.images if taught else (), request)
    found = None
    left = (request.epochs - run.epoch) * steps_an_epoch
    with memory_told(request.batch, _REMEDIES), Progress("finetune", left) as progress:
        ema.updates = run.epoch * steps_an_epoch
        for epoch in run.epochs(steps_an_epoch):
            _train_mode(detector, request, epoch)
            figures = train_epoch(run, loaders.of(epoch), _loss(detector, ema, fabric), progress)
            if _is_due(epoch, request) and dataset.val:
                found = _evaluate(ema.ema, dataset, request)
                figures |= {"map50_95": found.map50_95, "f1": found.f1}
            run.finish_epoch(_checkpoint(ema.ema, dataset, request, lineage), figures)
    if found is None and dataset.val:
        found = _evaluate(ema.ema, dataset, request)
    measured = {f"{HELD_OUT}{name}": str(value) for name, value in found.as_dict().items()} if found else {}
    save_checkpoint(path, with_training(_checkpoint(ema.ema, dataset, request, {**lineage, **measured}), None))
    return Finetuned(path, found, run.extra.get("figures", []))


def _steps(labels: int, batch: int) -> int:
    """In an epoch, which is a pass over the labels; frames beside them make it no longer."""
    return max(1, labels // batch)


def _check(request: FinetuneRequest) -> None:
    """Whether the run can start, before the data is read and long before the first checkpoint."""
    if request.imgsz % STRIDE:
        raise TrainingError(
            f"--imgsz must be a multiple of {STRIDE}, but got {request.imgsz}; try {-(-request.imgsz // STRIDE) * STRIDE}"
        )
    if several():
        raise TrainingError("fine-tuning runs in one process; start it without torchrun")
    if not (request.pool and request.resume):  # which may have been cut before the frames' turn
        check_run_folder(request.out, resume=request.resume)


def _lineage(request: FinetuneRequest, dataset: Dataset, digest: str, taught: Taught | None) -> dict[str, str]:
    of_pool = {"pool_frames": str(taught.looked), "pool_boxes": str(taught.boxes)} if taught else {}
    return {
        **of_pool,
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
        "pool": f"{request.pool} × {request.pool_share} from {request.burn_in}, upright {request.upright}" if request.pool else "",
    }  # fmt: skip


class _Loaders:
    """With mosaic, and without for the last epochs."""

    def __init__(self, dataset: Dataset, frames: tuple[TrainingImage, ...], request: FinetuneRequest) -> None:
        self._request = request
        relight = PoolLight(request.light_pool, request.until_s, request.seed) if request.light_pool else None
        images = mixed([training_image(item) for item in dataset.train], frames, request.pool_share)
        steps = _steps(len(dataset.train), request.batch) if frames else None
        self._mosaic, self._plain = (
            training_loader(
                images, dataset.names, BatchSpec(request.imgsz, request.batch, request.seed, mosaic, steps), relight
            )
            for mosaic in (True, False)
        )

    def of(self, epoch: int) -> DataLoader[object]:
        """The epoch's loader, its order depending on seed and epoch only."""
        plain = epoch >= self._request.epochs - max(1, round(_PLAIN_SHARE * self._request.epochs))
        loader = self._plain if plain else self._mosaic
        if loader.generator is not None:
            loader.generator.manual_seed(self._request.seed * 1_000_003 + epoch)
        return loader


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
