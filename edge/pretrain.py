"""Self-supervised pretraining of a YOLO on a pool of unlabeled frames."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from converters.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edge.collapse import FEWEST, refuse_collapse
from edge.errors import StorageError, TrainingError
from edge.injection import inject_all
from edge.lineage import seen_labels, with_seen
from edge.loader_processes import killed_told
from edge.methods import Settings, build_method
from edge.pretrain_request import PretrainRequest, check, remedies_of, settings_of, teacher_of
from edge.processes import is_first, launched_fabric, lost_told
from edge.run_folder import run_folder
from edge.snapshot import Snapshot
from edge.training import (
    Awaited,
    Budget,
    Run,
    adamw,
    last_of,
    memory_told,
    refuse_other_settings,
    seed_everything,
    with_training,
)
from edge.yolo import Part, build_detector, layers_of, part_keys, weight_average
from runtime.progress import Progress

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric
    from ultralytics.nn.tasks import DetectionModel

    from edge.collapse import Spread
    from edge.shard_loader import ShardLoader
    from edge.shards import ShardSet
    from edge.view_loader import ViewLoader
    from edge.yolo import WeightAverage

RESULT: dict[Part, str] = {"backbone": "backbone.pt", "neck": "neck.pt", "localizer": "localizer.pt"}
_WEIGHT_DECAY = 1e-4
_LOOK_EVERY = 500  # steps, within an epoch, for features that have collapsed; and at its end
_FEWEST = 2  # frames: every contrastive batch needs another image to repel


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
            damaged frames; or another process of this run has ended.
    """
    check(request)
    with lost_told(), run_folder(request.out, resume=request.resume):  # before anything is linked into it
        return _pretrained(request)


def _pretrained(request: PretrainRequest) -> Path:
    path = request.out / RESULT[request.part]
    if request.resume:
        budget = {"epochs": request.epochs, "lr": request.lr, "seed": request.seed}
        training = last_of(request.out).training
        if training is not None:
            refuse_other_settings(request.out, training["fingerprint"], settings_of(request) | budget)
        if path.is_file() and training is not None and training["epoch"] == request.epochs:
            _forget_frames(request)
            sys.stderr.write(
                f"the run in {request.out} is finished; to train longer, start another with --init {path} --lr {request.lr:g} "
                f"--interpolate {request.interpolate:g}\n"
            )
            return path
    fabric = launched_fabric(request.precision)
    detector = build_detector(request.model, ["object"], request.seed)
    before = _start_from(detector, request)
    began = {key: value.clone() for key, value in detector.state_dict().items()}
    frames = _frames(request, fabric)
    trained, loader, run = _prepared(request, detector, frames, fabric)
    lineage = with_seen(_lineage(request, frames), seen_labels(before), _teachers_labels(request))

    def checkpoint() -> Checkpoint:
        state = (trained.average.ema if trained.average else detector).state_dict()
        keys = part_keys(request.model, state, request.part)
        kept = {key: between(began[key], state[key], request.interpolate) for key in keys}
        return Checkpoint(request.model, (), kept, request.imgsz, request.part, lineage)

    left = (request.epochs - run.epoch) * loader.steps - run.step_in_epoch
    with (
        memory_told(f"--batch {request.batch}", remedies_of(request)),
        killed_told(),
        Progress("pretrain", left, shown=is_first()) as progress,
    ):
        for _ in run.epochs(loader.steps):
            try:
                figures = _Epoch(run, trained, loader, request).train(checkpoint, progress)
            except StorageError:
                run.save(checkpoint())
                raise
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
        return _told(ShardSet.open(request.shards), request)
    if is_first() and not request.resume:
        Snapshot.take(request.pool, request.out, request.until_s, _FEWEST)
    fabric.barrier()
    frames = Snapshot(request.out)
    if request.resume and is_first():
        sys.stderr.write(f"going on with the {len(frames)} frames that the run began with\n")
    return _told(frames, request)


def _told(frames: Snapshot | ShardSet, request: PretrainRequest) -> Snapshot | ShardSet:
    """The frames, and a word where they are fewer than was asked for."""
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
        seen: list[torch.Tensor] = []
        self._method.train()
        batches = Awaited(loader.epoch(run.epoch, run.step_in_epoch))
        for made in batches:
            views = self._fabric.to_device(made)
            seen = [*seen, views[0]][-math.ceil(FEWEST / len(views[0])) :]
            step = run.epoch * loader.steps + run.step_in_epoch
            seed_everything(self._request.seed, step * self._fabric.world_size + self._fabric.global_rank)
            losses.append(self._step(views))
            self._method.after_step(step)
            if self._average:
                self._average.update(self._method.trunk.detector)
            run.step_in_epoch += 1
            images += len(views[0]) * self._fabric.world_size
            progress.advance(f"loss {np.mean(losses):.3f}")
            if run.step_in_epoch % _LOOK_EVERY == 0:
                self._looked_at(seen, {"loss": float(np.mean(losses))})
            if time.monotonic() - saved_s > self._request.save_every_s:
                run.save(checkpoint())
                saved_s = time.monotonic()
        seconds = time.monotonic() - began_s
        figures = {
            "loss": float(np.mean(losses)),
            "seconds": round(seconds, 2),
            "images_per_s": round(images / max(seconds, 1e-9), 1),
            "waited_s": round(batches.waited_s, 2),
        }
        return self._looked_at(seen, figures) if seen else figures

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

    def _spread(self, seen: list[torch.Tensor]) -> Spread:
        """Of the latest images' features, those of all processes together."""
        import torch

        from edge.collapse import spread_of
        from edge.large_batch import in_chunks, statistics_kept
        from edge.trunk import pooled

        parts = [part for each in seen for part in in_chunks((each,), self._request.chunk or len(each))]
        # A short run's running statistics are still those of no image.
        with torch.no_grad(), statistics_kept(self._method), self._fabric.autocast():
            own = torch.cat([pooled(self._method.trunk(*part)) for part in parts]).float()
        return spread_of(cast("torch.Tensor", self._fabric.all_gather(own)).flatten(0, -2))

    def _looked_at(self, seen: list[torch.Tensor], figures: dict[str, float]) -> dict[str, float]:
        """The figures with the spread of the features.

        Raises:
            TrainingError: they have collapsed; the figures are logged.
        """
        found = self._spread(seen)
        figures |= {"effective_rank": round(found.effective_rank, 2), "deviation": round(found.deviation, 4)}
        try:
            refuse_collapse(found, sum(map(len, seen)) * self._fabric.world_size, self._request.method)
        except TrainingError:
            self._run.note(figures)
            raise
        return figures


def _fingerprint(request: PretrainRequest, frames: Snapshot | ShardSet) -> dict[str, Any]:
    """What must be the same for a resumed run to be the run that was interrupted."""
    return {"frames": frames.digest, **settings_of(request)}


def _lineage(request: PretrainRequest, frames: Snapshot | ShardSet) -> dict[str, str]:
    return {
        "ssl": request.method, "ssl_part": request.part, "ssl_frames_sha256": frames.digest, "ssl_frames": str(len(frames)),
        "ssl_epochs": str(request.epochs), "ssl_seed": str(request.seed), "ssl_interpolate": str(request.interpolate),
        "ssl_from_scratch": str(request.init is None),
        "ssl_batch": str(request.batch), "ssl_lr": str(request.lr), "ssl_upright": str(request.upright),
        "ssl_anchor": str(request.anchor), "ssl_average": str(request.average), "ssl_chunk": str(request.chunk),
        "ssl_precision": request.precision, "ssl_activation_checkpointing": str(request.activation_checkpointing),
        **({"ssl_teacher": teacher_of(request)} if request.teacher else {}),
    }  # fmt: skip


def _teachers_labels(request: PretrainRequest) -> frozenset[str]:
    """That a YOLO which is distilled was fine-tuned on."""
    if request.teacher is None or request.teacher_model:
        return frozenset()
    return seen_labels(load_checkpoint(request.teacher).lineage)


def _start_from(detector: DetectionModel, request: PretrainRequest) -> dict[str, str]:
    """The lineage of what the run begins as."""
    return inject_all(detector, (request.init,), request.model).lineage if request.init else {}
