"""Batches of views from shards, in memory that does not grow with their number.

Shards come in an order that depends on seed and epoch; frames of a shard are mixed through a buffer of encoded pictures.
Every loader process reads shards of its own, so which frames share a batch depends on their number as well, which a resumed
run must keep.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

from edge.errors import StorageError, TrainingError
from edge.loader_processes import Made, batches_of
from edge.methods import Views
from edge.shards import Shard, ShardSet
from edge.view_loader import LoaderSpec, refuse_many, stacked
from runtime.errors import EdgeloopError, SourceError
from runtime.images import decode_image

_BUFFER = 2000  # encoded pictures; some 100 MB at 640 pixels


class ShardLoader:
    """As `ViewLoader`, over shards."""

    def __init__(self, shards: ShardSet, views: Views, spec: LoaderSpec) -> None:
        """Raises TrainingError if there are fewer shards than processes that read them, or too few frames for a batch."""
        self._shards, self._views, self._spec = shards, views, spec
        self.damaged: dict[str, None] = {}
        readers = max(1, spec.workers) * spec.world
        if len(shards.index.shards) < readers:
            raise TrainingError(
                f"{len(shards.index.shards)} shards for {readers} readers; take fewer --workers, or export smaller shards"
            )
        if self.steps < 1:
            raise TrainingError(
                f"{len(shards)} frames give none of {readers} readers a batch of {spec.batch // spec.world}; lower --batch or --workers"
            )

    @property
    def steps(self) -> int:
        """See `steps_in`."""
        return self.steps_in(self._shards, self._spec)

    @staticmethod
    def steps_in(shards: ShardSet, spec: LoaderSpec) -> int:
        """Batches of each epoch, the same number in all processes, or those that train together would wait for ever.

        Frames that fill no batch are left out, and every reader has such a rest of its own. How large the rests are depends
        on which shards a reader has in an epoch; here each is as large as it can be, one frame short of a batch.
        """
        share = spec.batch // spec.world
        fewest = min(_frames(shards.index.shards[rank :: spec.world]) for rank in range(spec.world))
        return (fewest - (max(1, spec.workers) - 1) * (share - 1)) // share

    def epoch(self, number: int, first_step: int = 0) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches of an epoch from one on.

        Raises:
            TrainingError: a shard cannot be read, too many frames are damaged, or a loader process was killed.
        """
        stream = _EpochStream(self._shards, self._views, self._spec, number, first_step)
        made = batches_of(stream, num_workers=self._spec.workers)
        for _, (views, damaged) in zip(range(first_step, self.steps), made, strict=False):  # readers may have more
            self.damaged.update(dict.fromkeys(damaged))
            refuse_many(self.damaged, len(self._shards), "edge pool check POOL --repair, then export the pool again")
            yield views


def turns(batches: Sequence[int]) -> list[int]:
    """Which reader gives which batch of an epoch, when reader i has `batches[i]` of them.

    They take turns, as DataLoader asks its workers; one that has no more is passed over.
    """
    return [reader for turn in range(max(batches)) for reader, count in enumerate(batches) if turn < count]


class _EpochStream(torch.utils.data.IterableDataset[Made]):
    """What a loader process gives of an epoch: the batches of one reader, from where the run goes on."""

    def __init__(self, shards: ShardSet, views: Views, spec: LoaderSpec, epoch: int, first_step: int) -> None:
        self._shards, self._views, self._spec, self._epoch, self._first = shards, views, spec, epoch, first_step

    def __iter__(self) -> Iterator[Made]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        spec, size = self._spec, self._spec.batch // self._spec.world
        mine = self._shards.index.shards[spec.rank :: spec.world]
        order = np.random.default_rng((spec.seed, self._epoch)).permutation(len(mine))
        chosen = [[mine[index] for index in order[reader::workers]] for reader in range(workers)]
        batches = [_frames(shards) // size for shards in chosen]
        given = turns(batches)
        # DataLoader begins with its first worker, whoever's turn it was when the run stopped: that one's part it takes.
        reader = (worker + given[self._first]) % workers
        passed = given[: self._first].count(reader)
        try:
            if passed < batches[reader]:
                yield from self._batches(chosen[reader], reader, range(passed * size, batches[reader] * size))
        except EdgeloopError as error:
            yield StorageError(f"{error}") if isinstance(error, StorageError) else TrainingError(f"{error}")

    def _batches(self, shards: list[Shard], reader: int, positions: range) -> Iterator[Made]:
        """Of the frames at some positions of a reader's order; those before are passed over without being decoded."""
        size, seed = self._spec.batch // self._spec.world, (self._spec.seed, self._epoch, self._spec.rank, reader)
        whole: list[tuple[torch.Tensor, ...]] = []
        damaged: list[str] = []
        spare: NDArray[np.uint8] | None = None
        frames = itertools.islice(self._mixed(shards, seed), positions.start, positions.stop)
        for position, (name, data) in zip(positions, frames, strict=True):
            rng = np.random.default_rng((*seed, position))
            try:
                whole.append(self._views(decode_image(data, name), rng))
            except SourceError:
                damaged.append(name)
            if (position + 1) % size:
                continue
            if not whole:
                spare = self._first_whole(shards) if spare is None else spare
                whole.append(self._views(spare, rng))
            yield stacked(whole, size), damaged
            whole, damaged = [], []

    def _first_whole(self, shards: list[Shard]) -> NDArray[np.uint8]:
        """What stands for a batch that is all damaged: the same wherever a run is resumed."""
        for shard in (*shards, *self._shards.index.shards):
            for name, data in self._shards.frames(shard):
                with suppress(SourceError):
                    return decode_image(data, name)
        raise TrainingError(f"all frames in {self._shards.url} are damaged; export the pool again")

    def _mixed(self, shards: list[Shard], seed: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
        """All frames of some shards, through a buffer from which one is drawn at random."""
        rng = np.random.default_rng(seed)
        buffer: list[tuple[str, bytes]] = []
        for shard in shards:
            for frame in self._shards.frames(shard):
                if len(buffer) < _BUFFER:
                    buffer.append(frame)
                    continue
                index = int(rng.integers(len(buffer)))
                drawn, buffer[index] = buffer[index], frame
                yield drawn
        for index in rng.permutation(len(buffer)):
            yield buffer[int(index)]


def _frames(shards: Sequence[Shard]) -> int:
    return sum(shard.frames for shard in shards)
