"""Self-supervised pretraining of a YOLO on a pool of unlabeled frames."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from converters.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edge.errors import TrainingError
from edge.loader_processes import killed_told
from edge.methods import METHODS, Settings, build_method, kind_of
from edge.processes import Precision, is_first, launched_fabric, several, world_size
from edge.run_folder import LAST, run_folder
from edge.snapshot import Snapshot
from edge.training import Budget, Run, adamw, memory_told, refuse_other_settings, seed_everything, with_training
from edge.yolo import Part, build_detector, inject, layers_of, part_keys, weight_average
from runtime.files import sha256_of_file
from runtime.preprocess import STRIDE
from runtime.progress import Progress

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric

    from edge.shard_loader import ShardLoader
    from edge.shards import ShardSet
    from edge.view_loader import ViewLoader
    from edge.yolo import WeightAverage

RESULT: dict[Part, str] = {"backbone": "backbone.pt", "neck": "neck.pt", "localizer": "localizer.pt"}
_WEIGHT_DECAY = 1e-4
_FEWEST = 2  # frames: every contrastive batch needs another image to repel
_SAVE_EVERY_S = 120.0


@dataclass(frozen=True, slots=True)
class PretrainRequest:
    """A pretraining run.

    Attributes:
        pool: unlabeled frames.
        out: run folder; `backbone.pt`, `neck.pt` or `localizer.pt` appears there.
        model: architecture.
        init: weights to start from (COCO weights, or the last run's); None starts from scratch.
        imgsz: side of the views in pixels.
        batch: images a step.
        epochs: the usual.
        lr: the usual.
        seed: the usual.
        until_s: use frames captured up to this Unix time; None for all.
        resume: go on with the run in `out`.
        method: one of `METHODS`.
        part: what is trained and kept.
        teacher: weights for the method that distils: a YOLO's checkpoint, or those of `teacher_model`.
        upright: scenes have an up and a down.
        anchor: weight of staying near `init` (dense and hybrid); 0 for none.
        activation_checkpointing: compute activations twice instead of keeping them; the weights come out the same.
        interpolate: share of what was learnt in the weights that are written, the rest is `init`'s (WiSE-FT, Wortsman et al.
            2022, arXiv 2109.01903); 1 for all of it.
        chunk: images that fit the memory at once; 0 for the whole batch. The gradients of simclr and vicreg stay those of the
            batch, those of moco, dense, hybrid and cutpaste are accumulated.
        teacher_model: timm's name of the teacher; empty for a YOLO.
        average: whether the moving average of the weights is written (about a tenth of the run), and not the last ones.
        workers: processes that make views, for each process that trains.
        precision: of the arithmetic, as Lightning Fabric names it.
        shards: where shards lie (`edge pool export`), instead of the pool's own frames.
        save_every_s: time between two savings within an epoch.
    """

    pool: Path
    out: Path
    model: str = "yolo11n"
    init: Path | None = None
    imgsz: int = 320
    batch: int = 16
    epochs: int = 10
    lr: float = 1e-3
    seed: int = 0
    until_s: float | None = None
    resume: bool = False
    method: str = "cutpaste"
    part: Part = "localizer"
    teacher: Path | None = None
    upright: bool = False
    chunk: int = 0
    average: bool = False
    workers: int = 0
    precision: Precision = "32-true"
    shards: str = ""
    save_every_s: float = _SAVE_EVERY_S
    anchor: float = 0.0
    interpolate: float = 1.0
    activation_checkpointing: bool = False
    teacher_model: str = ""


@dataclass(frozen=True, slots=True)
class _Trained:
    """A method, what runs it (in all processes), the fabric of both, and the average that follows its detector."""

    method: Any
    wrapped: Any
    fabric: Fabric
    average: WeightAverage | None


def pretrain(request: PretrainRequest) -> Path:
    """Trains and writes the part's file in `out`; returns its path. Under `torchrun` all processes share each batch.

    Raises:
        PoolError: an empty pool.
        TrainingError: nothing to resume, a folder in use, a loss that is not finite, features that collapsed, or too many
            damaged frames.
    """
    check(request)
    with run_folder(request.out, resume=request.resume):  # before anything is linked into it
        return _pretrained(request)


def _pretrained(request: PretrainRequest) -> Path:
    path = request.out / RESULT[request.part]
    if request.resume:
        budget = {"epochs": request.epochs, "lr": request.lr, "seed": request.seed}
        training = load_checkpoint(request.out / LAST).training
        if training is not None:
            refuse_other_settings(request.out, training["fingerprint"], _settings(request) | budget)
        if path.is_file() and training is not None and training["epoch"] == request.epochs:
            _forget_frames(request)
            sys.stderr.write(f"the run in {request.out} is finished; to train longer, start another with --init {path}\n")
            return path
    fabric = launched_fabric(request.precision)
    detector = build_detector(request.model, ["object"], request.seed)
    _start_from(detector, request)
    began = {key: value.clone() for key, value in detector.state_dict().items()}
    frames = _frames(request, fabric)
    trained, loader, run = _prepared(request, detector, frames, fabric)
    lineage = _lineage(request, frames)

    def checkpoint() -> Checkpoint:
        state = (trained.average.ema if trained.average else detector).state_dict()
        keys = part_keys(request.model, state, request.part)
        kept = {key: between(began[key], state[key], request.interpolate) for key in keys}
        return Checkpoint(request.model, (), kept, request.imgsz, request.part, lineage)

    remedies = "lower it or --imgsz, give --activation-checkpointing, or --chunk (less memory still)"
    left = (request.epochs - run.epoch) * loader.steps - run.step_in_epoch
    with memory_told(request.batch, remedies), killed_told(), Progress("pretrain", left, shown=is_first()) as progress:
        for _ in run.epochs(loader.steps):
            figures = _Epoch(run, trained, loader, request).train(checkpoint, progress)
            run.finish_epoch(checkpoint(), figures)
    for name in loader.damaged:
        sys.stderr.write(f"left out, damaged: {name}\n")
    fabric.barrier()
    if is_first():
        save_checkpoint(path, with_training(checkpoint(), None))
        _forget_frames(request)
    return path


def _forget_frames(request: PretrainRequest) -> None:
    if not request.shards:  # a folder of that name would be somebody else's
        Snapshot.remove(request.out)


def between(began: torch.Tensor, learnt: torch.Tensor, share: float) -> torch.Tensor:
    """A new tensor on the way from one to the other; counters are the second's."""
    import torch

    if share == 1 or not learnt.is_floating_point():
        return learnt.clone()
    return torch.lerp(began.to(learnt.device), learnt, share)


def most_of(method: str) -> Part:
    """The largest part of a detector that a method trains.

    Raises:
        TrainingError: unknown method.
    """
    return kind_of(method).parts[0]


def check(request: PretrainRequest) -> None:
    """Whether the settings go together.

    Raises:
        TrainingError: they do not.
    """
    if request.imgsz % STRIDE:
        raise TrainingError(
            f"--imgsz must be a multiple of {STRIDE}, but got {request.imgsz}; try {-(-request.imgsz // STRIDE) * STRIDE}"
        )
    kind = kind_of(request.method)
    if request.anchor and (request.init is None or not kind.is_anchored):
        anchored = " and ".join(name for name, each in METHODS.items() if each.is_anchored)
        raise TrainingError(f"--anchor holds what --init knows, for {anchored}; give both, or leave it out")
    if request.method == "distill" and request.teacher is None:
        raise TrainingError("distill needs a teacher; name the weights of a larger model (--teacher)")
    if request.teacher_model and request.teacher is None:
        raise TrainingError("--teacher-model says what --teacher is; give both, or leave it out")
    if request.teacher and request.method != "distill":
        raise TrainingError(f"--teacher is for distill, and {request.method} has none; leave it out")
    if request.interpolate < 1 and request.init is None:
        raise TrainingError("--interpolate lies between --init and what is learnt; give --init, or leave it out")
    check_part(request.method, request.part)
    if request.activation_checkpointing and kind.is_masked:
        raise TrainingError(f"--activation-checkpointing is not for {request.method}; give --chunk instead")
    if request.chunk == 1:
        raise TrainingError("--chunk 1 leaves batch norm a single image; give 2 or more, or leave it out")
    if request.chunk and several():
        raise TrainingError("--chunk is for one process; under torchrun the processes share the batch already")


def check_part(method: str, part: Part) -> None:
    """Whether a method trains a part.

    Raises:
        TrainingError: it does not.
    """
    parts = kind_of(method).parts
    if part not in parts:
        raise TrainingError(f"{method} can train {' or '.join(parts)}, but --part is {part}; change it, or --method")


def _prepared(
    request: PretrainRequest, detector: torch.nn.Module, frames: Snapshot | ShardSet, fabric: Fabric
) -> tuple[_Trained, ViewLoader | ShardLoader, Run]:
    """The method around its part of the detector, what feeds it, and the run that it is, begun or resumed."""
    import torch

    from edge.activation_checkpointing import checkpoint_activations
    from edge.shard_loader import ShardLoader
    from edge.trunk import Trunk
    from edge.view_loader import LoaderSpec, ViewLoader

    batch = min(request.batch, len(frames)) // fabric.world_size * fabric.world_size
    if not batch:
        raise TrainingError(f"{len(frames)} frames are fewer than {fabric.world_size} processes; start fewer")
    seed_everything(request.seed, 0)  # of the method's own layers
    trunk = Trunk(detector, request.model, request.part)
    spec = LoaderSpec(batch, request.seed, request.workers, fabric.global_rank, fabric.world_size)
    steps = ViewLoader.steps_in(frames, spec) if isinstance(frames, Snapshot) else ShardLoader.steps_in(frames, spec)
    settings = Settings(
        request.imgsz,
        batch,
        len(frames),
        request.epochs * steps,
        request.upright,
        request.teacher,
        request.anchor,
        request.teacher_model,
    )
    method: Any = build_method(request.method, trunk, settings).to(memory_format=torch.channels_last)
    if request.activation_checkpointing:
        checkpoint_activations(layers_of(detector, request.model))
    views = method.views
    loader = ViewLoader(frames, views, spec) if isinstance(frames, Snapshot) else ShardLoader(frames, views, spec)
    wrapped, optimizer = fabric.setup(method, adamw([(method, request.lr)], _WEIGHT_DECAY))
    average = weight_average(detector, request.epochs * loader.steps) if request.average else None
    modules = {"method": method} | ({"average": average.ema} if average else {})
    run = Run(request.out, modules, optimizer, Budget(request.epochs, request.lr), request.seed)
    run.start(_fingerprint(request, frames), resume=request.resume)
    if average:
        average.updates = run.epoch * loader.steps + run.step_in_epoch
    return _Trained(method, wrapped, fabric, average), loader, run


def _frames(request: PretrainRequest, fabric: Fabric) -> Snapshot | ShardSet:
    """What is looked at; the pool's frames are linked into the run folder, shards stay where they are."""
    from edge.shards import ShardSet

    if request.shards:
        return ShardSet.open(request.shards)
    if is_first() and not request.resume:
        Snapshot.take(request.pool, request.out, request.until_s, _FEWEST)
    fabric.barrier()
    frames = Snapshot(request.out)
    if request.resume and is_first():
        sys.stderr.write(f"going on with the {len(frames)} frames that the run began with\n")
    if request.batch > len(frames) and is_first():
        sys.stderr.write(f"--batch {request.batch} is more than there are frames; each step takes all {len(frames)}\n")
    return frames


class _Epoch:
    """One pass over the frames, from wherever the run stands."""

    def __init__(self, run: Run, trained: _Trained, loader: ViewLoader | ShardLoader, request: PretrainRequest) -> None:
        self._run, self._loader, self._request = run, loader, request
        self._method, self._wrapped, self._fabric, self._average = (
            trained.method,
            trained.wrapped,
            trained.fabric,
            trained.average,
        )

    def train(self, checkpoint: Any, progress: Progress) -> dict[str, float]:
        """A step for each batch; mean loss, time and spread of the features."""
        import numpy as np

        run, loader = self._run, self._loader
        losses: list[float] = run.extra["losses"] if run.step_in_epoch else []
        run.extra["losses"] = losses
        began_s = saved_s = time.monotonic()
        images = 0
        views: tuple[torch.Tensor, ...] = ()
        self._method.train()
        for made in loader.epoch(run.epoch, run.step_in_epoch):
            views = self._fabric.to_device(made)
            step = run.epoch * loader.steps + run.step_in_epoch
            seed_everything(self._request.seed, step * self._fabric.world_size + self._fabric.global_rank)
            losses.append(self._step(views))
            self._method.after_step(step)
            if self._average:
                self._average.update(self._method.trunk.detector)
            run.step_in_epoch += 1
            images += len(views[0]) * self._fabric.world_size
            progress.advance(f"loss {np.mean(losses):.3f}")
            if time.monotonic() - saved_s > self._request.save_every_s:
                run.save(checkpoint())
                saved_s = time.monotonic()
        seconds = time.monotonic() - began_s
        figures = {
            "loss": float(np.mean(losses)),
            "seconds": round(seconds, 2),
            "images_per_s": round(images / max(seconds, 1e-9), 1),
        }
        return figures | self._spread(views)

    def _step(self, views: tuple[torch.Tensor, ...]) -> float:
        from edge.large_batch import accumulated_backward, cached_backward

        chunk, run = self._request.chunk, self._run
        if not chunk or chunk >= len(views[0]):
            loss = self._wrapped(*views)
            run.refuse(loss)
            run.zero_grad()
            self._fabric.backward(loss)
            run.apply()
            return float(cast("torch.Tensor", self._fabric.all_reduce(loss.detach())))
        run.zero_grad()
        if hasattr(self._method, "embed"):
            with self._fabric.autocast():
                loss = cached_backward(self._method, self._method, views, chunk, self._fabric.backward)
        else:
            loss = accumulated_backward(self._wrapped, views, chunk, self._fabric.backward)
        run.refuse(loss)
        run.apply()
        return float(loss)

    def _spread(self, views: tuple[torch.Tensor, ...]) -> dict[str, float]:
        """Of the last batch's features."""
        import torch

        from edge.collapse import refuse_collapse, spread_of
        from edge.large_batch import in_chunks, statistics_kept
        from edge.trunk import pooled

        if not views:
            return {}
        parts = in_chunks((views[0],), self._request.chunk or len(views[0]))
        # A short run's running statistics are still those of no image.
        with torch.no_grad(), statistics_kept(self._method), self._fabric.autocast():
            found = spread_of(torch.cat([pooled(self._method.trunk(*part)) for part in parts]).float())
        refuse_collapse(found, len(views[0]))
        return {"effective_rank": round(found.effective_rank, 2), "deviation": round(found.deviation, 4)}


def _fingerprint(request: PretrainRequest, frames: Snapshot | ShardSet) -> dict[str, Any]:
    """What must be the same for a resumed run to be the run that was interrupted."""
    return {"frames": frames.digest, **_settings(request)}


def _settings(request: PretrainRequest) -> dict[str, Any]:
    return {
        "model": request.model, "init": _digest(request.init), "imgsz": request.imgsz,
        "batch": request.batch, "method": request.method, "part": request.part, "teacher": _teacher(request),
        "upright": request.upright, "chunk": request.chunk, "average": request.average,
        # Which frames share a batch of shards depends on who reads them.
        "readers": f"{request.workers} × {world_size()}" if request.shards else "",
        "precision": request.precision, "anchor": request.anchor,
        "interpolate": request.interpolate,
    }  # fmt: skip


def _teacher(request: PretrainRequest) -> str:
    return f"{_digest(request.teacher)} {request.teacher_model}".strip()


def _digest(path: Path | None) -> str:
    return sha256_of_file(path)[:12] if path else ""


def _lineage(request: PretrainRequest, frames: Snapshot | ShardSet) -> dict[str, str]:
    return {
        "ssl": request.method, "ssl_part": request.part, "ssl_frames_sha256": frames.digest, "ssl_frames": str(len(frames)),
        "ssl_epochs": str(request.epochs), "ssl_seed": str(request.seed), "ssl_interpolate": str(request.interpolate),
        "ssl_batch": str(request.batch), "ssl_lr": str(request.lr), "ssl_upright": str(request.upright),
        "ssl_anchor": str(request.anchor), "ssl_average": str(request.average), "ssl_chunk": str(request.chunk),
        "ssl_precision": request.precision, "ssl_activation_checkpointing": str(request.activation_checkpointing),
        **({"ssl_teacher": _teacher(request)} if request.teacher else {}),
    }  # fmt: skip


def _start_from(detector: torch.nn.Module, request: PretrainRequest) -> None:
    if request.init is not None:
        told = inject(detector, load_checkpoint(request.init), request.model)
        sys.stderr.write(f"starting from {request.init}: {told}\n")
