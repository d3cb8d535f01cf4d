"""Self-supervised pretraining of a YOLO backbone on a pool of unlabeled frames."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edge.methods.simclr import TwoViews, build_simclr
from edge.snapshot import Snapshot
from edge.training import Budget, Run, adamw, check_run_folder, train_epoch, with_training
from edge.yolo import backbone_keys, build_backbone, build_detector, inject
from runtime.files import sha256_of_file
from runtime.progress import Progress

if TYPE_CHECKING:
    import torch

BACKBONE = "backbone.pt"
_WEIGHT_DECAY = 1e-4
_FEWEST = 2  # frames: every contrastive batch needs another image to repel


@dataclass(frozen=True, slots=True)
class PretrainRequest:
    """A pretraining run.

    Attributes:
        pool: unlabeled frames.
        out: run folder; `backbone.pt` appears there.
        model: architecture.
        init: weights to start from (COCO weights, or the last backbone); None starts from scratch.
        imgsz: side of the views in pixels.
        batch: images a step; their views are each other's negatives.
        epochs, lr, seed: the usual.
        until_s: use frames captured up to this Unix time; None for all.
        resume: go on with the run in `out`.
    """

    pool: Path
    out: Path
    model: str = "yolo11n"
    init: Path | None = None
    imgsz: int = 128
    batch: int = 64
    epochs: int = 10
    lr: float = 1e-3
    seed: int = 0
    until_s: float | None = None
    resume: bool = False


def pretrain(request: PretrainRequest) -> Path:
    """Runs SimCLR and writes `out/backbone.pt`; returns its path.

    Raises:
        PoolError: an empty pool, or a damaged frame.
        TrainingError: nothing to resume, a folder in use, a loss that is not finite.
    """
    import torch

    check_run_folder(request.out, resume=request.resume)  # before anything is linked into it
    path = request.out / BACKBONE
    if request.resume and path.is_file():
        sys.stderr.write(f"the run in {request.out} is finished; to train longer, start another with --init {path}\n")
        return path
    detector = build_detector(request.model, ["object"], request.seed)
    _start_from(detector, request)
    backbone = build_backbone(detector, request.model)
    channels = backbone(torch.zeros(1, 3, 64, 64)).shape[1]
    method = build_simclr(backbone, channels).to(memory_format=torch.channels_last)
    frames = Snapshot(request.out) if request.resume else Snapshot.take(request.pool, request.out, request.until_s, _FEWEST)
    batch = min(request.batch, len(frames))
    run = Run(
        request.out,
        {"method": method},
        adamw([method], request.lr, _WEIGHT_DECAY),
        Budget(request.epochs, request.lr),
        request.seed,
    )
    run.start(_fingerprint(request, frames), resume=request.resume)
    steps, views, lineage = len(frames) // batch, TwoViews(request.imgsz), _lineage(request, frames)
    with Progress("pretrain", (request.epochs - run.epoch) * steps) as progress:
        for epoch in run.epochs(steps):
            method.train()
            batches = _batches(frames, views, batch, (request.seed, epoch))
            figures = train_epoch(run, batches, lambda pair: method(*pair), progress)
            run.finish_epoch(_checkpoint(detector, request, lineage), figures)
    save_checkpoint(path, with_training(_checkpoint(detector, request, lineage), None))
    frames.remove()
    return path


def _fingerprint(request: PretrainRequest, frames: Snapshot) -> dict[str, str | int]:
    """What must be the same for a resumed run to be the run that was interrupted."""
    init = sha256_of_file(request.init)[:12] if request.init else ""
    return {"model": request.model, "frames": frames.digest, "init": init, "imgsz": request.imgsz, "batch": request.batch}


def _lineage(request: PretrainRequest, frames: Snapshot) -> dict[str, str]:
    return {
        "ssl": "simclr", "ssl_frames_sha256": frames.digest, "ssl_frames": str(len(frames)),
        "ssl_epochs": str(request.epochs), "ssl_seed": str(request.seed),
    }  # fmt: skip


def _start_from(detector: torch.nn.Module, request: PretrainRequest) -> None:
    if request.init is not None:
        told = inject(detector, load_checkpoint(request.init), request.model)
        sys.stderr.write(f"starting from {request.init}: {told}\n")


def _batches(
    frames: Snapshot, views: TwoViews, batch: int, seed: tuple[int, int]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Full batches of two views in a seeded order; the rest of an epoch that does not fill a batch is left out."""
    import torch

    order = np.random.default_rng(seed).permutation(len(frames))
    for start in range(0, len(order) - batch + 1, batch):
        pairs = [views(frames.read(int(index))) for index in order[start : start + batch]]
        first, second = (torch.stack(side).contiguous(memory_format=torch.channels_last) for side in zip(*pairs, strict=True))
        yield first, second


def _checkpoint(detector: torch.nn.Module, request: PretrainRequest, lineage: dict[str, str]) -> Checkpoint:
    state = detector.state_dict()
    kept = {key: state[key].clone() for key in backbone_keys(request.model, state)}
    return Checkpoint(request.model, (), kept, request.imgsz, "backbone", lineage)
