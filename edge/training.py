"""What every training run shares: seeded epochs, one schedule, a checkpoint between epochs, `--resume`.

A run folder holds `last.pt` (weights, optimizer, schedule, epoch and step) and what each epoch gave (`log.jsonl`, `log.csv`,
`tensorboard/`). Random streams are derived from `(seed, epoch)`, or from `(seed, step)` where a run also goes on within an
epoch: what is resumed is what was interrupted.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from converters.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from converters.errors import CheckpointError
from edge.errors import TrainingError
from edge.processes import is_first
from edge.run_folder import LAST, check_run_folder
from edge.run_log import RunLog
from runtime.errors import MissingPackageError
from runtime.progress import Progress

if TYPE_CHECKING:
    import torch

_GRADIENT_NORM = 10.0  # Ultralytics' clip
_OF_EVERY_RUN = {"model", "init", "imgsz", "batch", "epochs", "lr", "seed", "precision", "upright"}
_SAVE_EVERY_S = 15.0  # few labels make epochs of a step, and writing them all would take longer than learning


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a run is.

    Attributes:
        epochs: passes over the data.
        lr: peak learning rate.
        warmup: share of all steps with a rising rate, 0 to 1.
    """

    epochs: int
    lr: float
    warmup: float = 0.1


class Stateful(Protocol):
    """A module, or anything else whose state a resumed run needs."""

    def state_dict(self) -> Any:
        """Tensors, numbers, words, lists and mappings."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Takes up what `state_dict` gave."""
        ...


class Run:
    """One training run and the state that survives a kill."""

    def __init__(
        self, out: Path, modules: Mapping[str, Stateful], optimizer: torch.optim.Optimizer, budget: Budget, seed: int
    ) -> None:
        """Nothing is read or written yet.

        Args:
            out: the run folder.
            modules: everything with weights or running statistics, by name.
            optimizer: over the parameters to train.
            budget: length and rate.
            seed: of every random stream.
        """
        self.out, self.budget, self.seed = out, budget, seed
        self.epoch = self.step_in_epoch = 0
        self.extra: dict[str, Any] = {}
        self._modules, self._optimizer = dict(modules), optimizer
        self._scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
        self._saved_s = -math.inf
        self._log = RunLog(out)

    def start(self, fingerprint: Mapping[str, Any], *, resume: bool) -> None:
        """Begins anew, or takes up `last.pt`.

        Args:
            fingerprint: what must be the same for resuming to mean anything (data, model, budget).
            resume: whether to go on.

        Raises:
            TrainingError: nothing to resume, another run's folder, or a folder that holds a run already.
        """
        self._fingerprint = {**fingerprint, "epochs": self.budget.epochs, "lr": self.budget.lr, "seed": self.seed}
        check_run_folder(self.out, resume=resume)
        if resume:
            self._restore(last_of(self.out))

    def epochs(self, steps_per_epoch: int) -> Iterable[int]:
        """Yields the epochs that are left; the schedule is placed at the first of them."""
        self._scheduler = self._make_scheduler(steps_per_epoch)
        if "scheduler" in self.extra:
            self._scheduler.load_state_dict(self.extra.pop("scheduler"))
            for group, lr in zip(self._optimizer.param_groups, self._scheduler.get_last_lr(), strict=True):
                group["lr"] = lr  # making a scheduler set it back to the first step's
        while self.epoch < self.budget.epochs:
            seed_everything(self.seed, self.epoch)
            yield self.epoch
        self._log.close()

    def step(self, loss: torch.Tensor) -> None:
        """One optimizer step of a scalar loss.

        Raises:
            TrainingError: the loss is not finite.
        """
        self.refuse(loss)
        self.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.apply()

    def refuse(self, loss: torch.Tensor, what: str = "loss") -> None:
        """Stops before a loss, or a gradient, that is no number reaches the weights; `last.pt` stays as it is.

        Raises:
            TrainingError: it is not finite.
        """
        import torch

        if not torch.isfinite(loss):
            saved = (self.out / LAST).is_file()
            raise TrainingError(
                f"the {what} became {loss.item()} in epoch {self.epoch + 1}; lower --lr (or what weighs the loss) and start again"
                + (f", with --init {self.out / LAST} if the weights before it are worth keeping" if saved else "")
            )

    def zero_grad(self) -> None:
        """Forgets the gradients of the step before."""
        self._optimizer.zero_grad()

    def apply(self) -> None:
        """The optimizer's step with the gradients that are there."""
        import torch

        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
        self.refuse(norm, "gradient")
        self._optimizer.step()
        if self._scheduler is not None:
            self._scheduler.step()

    def finish_epoch(self, checkpoint: Checkpoint, figures: Mapping[str, float]) -> None:
        """Saves after the first and the last epoch, and whenever some seconds have passed: a kill costs
        no more than those.
        """
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.extra["figures"] = [*self.extra.get("figures", []), {"epoch": self.epoch, **figures}]
        if self.epoch < self.budget.epochs and time.monotonic() - self._saved_s < _SAVE_EVERY_S:
            return
        self.save(checkpoint)
        self._saved_s = time.monotonic()

    def note(self, figures: Mapping[str, float]) -> None:
        """Logs what an epoch gave that is not finished, and of which nothing else is kept."""
        if is_first():
            self._log.write([*self.extra.get("figures", []), {"epoch": self.epoch + 1, **figures}])

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes the log, and `last.pt` as things stand: a resume goes on after `step_in_epoch` steps of this epoch."""
        scheduler = self._scheduler.state_dict() if self._scheduler is not None else {}
        training = {
            "fingerprint": self._fingerprint,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "losses": list(self.extra.get("losses", [])) if self.step_in_epoch else [],
            "modules": {name: module.state_dict() for name, module in self._modules.items()},
            "optimizer": self._optimizer.state_dict(),
            "scheduler": scheduler,
            "figures": self.extra.get("figures", []),
        }
        if is_first():
            self._log.write(training["figures"])  # first: what is in the checkpoint counts as told
            save_checkpoint(self.out / LAST, with_training(checkpoint, training))

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.training
        if state is None:
            raise TrainingError(
                f"{self.out / LAST} is a released checkpoint without training state; start a new run with --init"
            )
        refuse_other_settings(self.out, state["fingerprint"], self._fingerprint)
        for name, module in self._modules.items():
            module.load_state_dict(state["modules"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step_in_epoch = int(state["epoch"]), int(state.get("step_in_epoch", 0))
        self.extra = {
            "figures": list(state["figures"]),
            "scheduler": state["scheduler"],
            "losses": list(state.get("losses", [])),
        }
        self._log = RunLog(self.out, len(self.extra["figures"]))

    def _make_scheduler(self, steps_per_epoch: int) -> torch.optim.lr_scheduler.LRScheduler:
        try:
            from lightly.utils.scheduler import CosineWarmupScheduler  # part of the train extra
        except ImportError as error:
            raise MissingPackageError("lightly", "train") from error
        total = self.budget.epochs * steps_per_epoch
        return CosineWarmupScheduler(self._optimizer, round(self.budget.warmup * total), total)  # type: ignore[no-any-return]


def last_of(out: Path) -> Checkpoint:
    """What a run saved last.

    Raises:
        TrainingError: it is damaged.
    """
    try:
        return load_checkpoint(out / LAST)
    except CheckpointError as error:
        raise TrainingError(f"{out / LAST} is damaged, so this run cannot go on; start again in another --out") from error


def refuse_other_settings(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Whether a run goes on as it began.

    Args:
        out: the run folder.
        before: what the run was started with.
        now: what it is asked for; what is not in here is not compared.

    Raises:
        TrainingError: it does not.
    """
    if before.keys().isdisjoint(now.keys() - _OF_EVERY_RUN):
        raise TrainingError(f"{out} holds a run of another command; choose another --out")
    # A run that began before there was a setting has it off.
    changed = {key: (before.get(key), value) for key, value in now.items() if (before.get(key) or None) != (value or None)}
    told = ", ".join(f"{key} {_shown(old)} → {_shown(new)}" for key, (old, new) in changed.items())
    if told:
        raise TrainingError(
            f"{out} was started with other settings ({told}); resume with the same ones, or choose another --out"
        )


def _shown(value: Any) -> str:
    return "none" if value in (None, "", [], ()) else f"{value}"


@contextmanager
def memory_told(load: str, remedies: str) -> Iterator[None]:
    """Within, running out of memory is a sentence that names the load (`--batch 16`) and what helps.

    Raises:
        TrainingError: instead of PyTorch's error.
    """
    import torch

    try:
        yield
    except (RuntimeError, MemoryError) as error:  # the CPU's allocator has no exception of its own
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "allocate memory" not in str(error):
            raise
        raise TrainingError(f"out of memory with {load}; {remedies}") from error


@contextmanager
def single_value_told() -> Iterator[None]:
    """Within, a batch that is one value a channel in the coarsest maps, of which there is no variance, is a sentence.

    Raises:
        TrainingError: instead of PyTorch's error.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            "a single picture of 32 px is too little for batch norm; raise --imgsz, or label more images"
        ) from error


class Awaited:
    """Batches, and how long the training waited for them.

    Attributes:
        waited_s: so far.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.waited_s = 0.0
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        began_s = time.monotonic()
        for batch in self._batches:
            self.waited_s += time.monotonic() - began_s
            yield batch
            began_s = time.monotonic()


def train_epoch(
    run: Run,
    batches: Iterable[Any],
    loss_of: Callable[[Any], torch.Tensor],
    after_step: Callable[[], None],
    progress: Progress,
) -> dict[str, float]:
    """One epoch: a step for each batch; the mean loss and images' time."""
    losses, start = [], time.monotonic()
    awaited = Awaited(batches)
    for batch in awaited:
        loss = loss_of(batch)
        run.step(loss)
        after_step()
        losses.append(float(loss.detach()))
        progress.advance(f"loss {np.mean(losses):.3f}")
    seconds = time.monotonic() - start
    return {"loss": float(np.mean(losses)), "seconds": round(seconds, 2), "waited_s": round(awaited.waited_s, 2)}


def with_training(checkpoint: Checkpoint, training: Mapping[str, Any] | None) -> Checkpoint:
    """The same checkpoint with other training state; None for a released file."""
    return replace(checkpoint, training=training)


def seed_everything(seed: int, epoch: int) -> None:
    """Sets every random stream that augmentation and training draw from."""
    import torch

    mixed = (seed * 1_000_003 + epoch) % 2**31
    random.seed(mixed)
    np.random.seed(mixed)  # noqa: NPY002  the libraries' augmentations draw from the global stream
    torch.manual_seed(mixed)


def adamw(layers: Iterable[tuple[torch.nn.Module, float]], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW over layers with their peak learning rates; weight decay on matrices and filters only, none for what is frozen."""
    import torch

    groups: list[dict[str, Any]] = []
    for layer, lr in layers:
        parameters = [p for p in layer.parameters() if p.requires_grad]
        for matrices, decay in ((True, weight_decay), (False, 0.0)):
            if chosen := [p for p in parameters if (p.ndim > 1) == matrices]:
                groups.append({"params": chosen, "weight_decay": decay, "lr": lr})
    return torch.optim.AdamW(groups)
