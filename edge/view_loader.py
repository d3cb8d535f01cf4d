"""Batches of views of a run's frames: the same ones for the same seed, whatever the number of loader processes.

What batch `step` of an epoch holds depends on seed, epoch and step alone, so a run that was killed goes on with exactly the
batches that it would have seen.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from edge.errors import TrainingError
from edge.loader_processes import Made, batches_of
from edge.methods import Views
from edge.snapshot import Snapshot
from runtime.errors import EdgeloopError, PoolError, SourceError
from runtime.images import MOST_DAMAGED


@dataclass(frozen=True, slots=True)
class LoaderSpec:
    """How batches are made.

    Attributes:
        batch: images in one.
        seed: of order and views.
        workers: processes; 0 makes views on the training thread.
        rank: of this process among `world`.
        world: processes that share each batch.
    """

    batch: int
    seed: int
    workers: int = 0
    rank: int = 0
    world: int = 1


class ViewLoader:
    """Makes the batches of one run.

    Attributes:
        damaged: names of frames that could not be read and were left out.
    """

    def __init__(self, frames: Snapshot, views: Views, spec: LoaderSpec) -> None:
        self._frames, self._views, self._spec = frames, views, spec
        self.damaged: dict[str, None] = {}

    @property
    def steps(self) -> int:
        """See `steps_in`."""
        return self.steps_in(self._frames, self._spec)

    @staticmethod
    def steps_in(frames: Snapshot, spec: LoaderSpec) -> int:
        """Batches in an epoch; the rest of the frames that does not fill one is left out of it."""
        return len(frames) // spec.batch

    def epoch(self, number: int, first_step: int = 0) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches of an epoch from one on, this process's share of each.

        Raises:
            TrainingError: too many frames are damaged, or a loader process was killed.
        """
        made = batches_of(
            _EpochBatches(self._frames, self._views, self._spec, number),
            sampler=range(first_step, self.steps),
            num_workers=self._spec.workers,
        )
        for views, damaged in made:
            self.damaged.update(dict.fromkeys(damaged))
            refuse_many(self.damaged, len(self._frames))
            yield views


def refuse_many(
    damaged: Collection[str], total: int, remedy: str = "edge pool check POOL --repair, and start a new run"
) -> None:
    """Whether so many of `total` frames are damaged that it is no accident.

    Raises:
        TrainingError: they are.
    """
    if len(damaged) > MOST_DAMAGED * total:
        raise TrainingError(
            f"{len(damaged)} of {total} frames are damaged, first {next(iter(damaged))}; find and remove them with: {remedy}"
        )


class _EpochBatches(torch.utils.data.Dataset[Made]):
    """The batches of an epoch by their step."""

    def __init__(self, frames: Snapshot, views: Views, spec: LoaderSpec, epoch: int) -> None:
        self._frames, self._views, self._spec, self._epoch = frames, views, spec, epoch
        self._order = np.random.default_rng((spec.seed, epoch)).permutation(len(frames))

    def __getitem__(self, step: int) -> Made:
        try:
            return self._batch(step)
        except EdgeloopError as error:
            return TrainingError(f"{error}")

    def _batch(self, step: int) -> tuple[tuple[torch.Tensor, ...], list[str]]:
        """This process's share; where all of it is damaged, the next whole frame of the order stands for it."""
        begin, end = step * self._spec.batch, (step + 1) * self._spec.batch
        share = self._order[begin:end][self._spec.rank :: self._spec.world]
        whole: list[tuple[torch.Tensor, ...]] = []
        damaged: list[str] = []
        for place, index in enumerate(itertools.chain(share, self._order[end:], self._order[:begin])):
            if place >= len(share) and whole:
                break
            position = int(index)
            try:
                image = self._frames.read(position)
            except (PoolError, SourceError, OSError):  # a sector of a card that went bad is damage too
                damaged.append(self._frames.name(position))
                refuse_many(damaged, len(self._frames))
                continue
            whole.append(self._views(image, np.random.default_rng((self._spec.seed, self._epoch, position))))
        return stacked(whole, len(share)), damaged


def stacked(whole: list[tuple[torch.Tensor, ...]], count: int) -> tuple[torch.Tensor, ...]:
    """Views of `count` images; gaps are filled with those there are: processes that train together need equal batches."""
    filled = [whole[place % len(whole)] for place in range(count)]
    return tuple(_laid_out(torch.stack(side)) for side in zip(*filled, strict=True))


def _laid_out(view: torch.Tensor) -> torch.Tensor:
    """Images with their channels last, as convolutions on CPUs and tensor cores want them; anything else as it is."""
    return view.contiguous(memory_format=torch.channels_last) if view.ndim == 4 else view
