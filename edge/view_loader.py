"""Batches of views of a run's frames: the same ones for the same seed, whatever the number of loader processes.

What batch `step` of an epoch holds depends on seed, epoch and step alone, so a run that was killed goes on with exactly the
batches that it would have seen.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edge.errors import TrainingError
from edge.methods import Views
from edge.snapshot import MOST_DAMAGED, Snapshot
from runtime.errors import PoolError


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
        """Batches in an epoch; the rest of the frames that does not fill one is left out of it."""
        return len(self._frames) // self._spec.batch

    def epoch(self, number: int, first_step: int = 0) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches of an epoch from one on, this process's share of each.

        Raises:
            TrainingError: too many frames are damaged.
        """
        order = np.random.default_rng((self._spec.seed, number)).permutation(len(self._frames))
        size = self._spec.batch
        chunks = [order[step * size : (step + 1) * size] for step in range(first_step, self.steps)]
        share = [[(number, int(index)) for index in chunk[self._spec.rank :: self._spec.world]] for chunk in chunks]
        dataset = _FrameViews(self._frames, self._views, self._spec.seed)
        made: Iterator[_Batch] = batches_of(
            dataset,
            batch_sampler=share,
            num_workers=self._spec.workers,
            collate_fn=_stacked,
        )
        for views, damaged in made:
            self.damaged.update(dict.fromkeys(damaged))
            if len(self.damaged) > MOST_DAMAGED * len(self._frames):
                raise TrainingError(
                    f"{len(self.damaged)} of {len(self._frames)} frames are damaged, first {next(iter(self.damaged))}; "
                    "find and remove them with: edge pool check POOL --repair"
                )
            yield views


def batches_of(*arguments: Any, **options: Any) -> Iterator[Any]:
    """What PyTorch's DataLoader gives, with as many processes as the user asked for, without advice about cores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return iter(torch.utils.data.DataLoader(*arguments, **options))


_Item = tuple[torch.Tensor, ...] | str
_Batch = tuple[tuple[torch.Tensor, ...], list[str]]


class _FrameViews(torch.utils.data.Dataset[_Item]):
    """By epoch and position: the frame's views, or its name if it is damaged."""

    def __init__(self, frames: Snapshot, views: Views, seed: int) -> None:
        self._frames, self._views, self._seed = frames, views, seed

    def __getitem__(self, key: tuple[int, int]) -> _Item:
        epoch, position = key
        try:
            image = self._frames.read(position)
        except PoolError:
            return self._frames.name(position)
        return self._views(image, np.random.default_rng((self._seed, epoch, position)))


def _stacked(items: list[_Item]) -> _Batch:
    whole = [item for item in items if not isinstance(item, str)]
    if not whole:
        raise TrainingError(f"a whole batch of frames is damaged, first {items[0]}; try: edge pool check POOL --repair")
    whole = [whole[place % len(whole)] for place in range(len(items))]  # processes that train together need equal batches
    views = tuple(torch.stack(side) for side in zip(*whole, strict=True))
    return tuple(laid_out(view) for view in views), [item for item in items if isinstance(item, str)]


def laid_out(view: torch.Tensor) -> torch.Tensor:
    """Images with their channels last, as convolutions on CPUs and tensor cores want them; anything else as it is."""
    return view.contiguous(memory_format=torch.channels_last) if view.ndim == 4 else view
