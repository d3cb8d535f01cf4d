"""Batches of views from shards, in memory that does not grow with their number.

Shards come in an order that depends on seed and epoch; frames of a shard are mixed through a buffer of encoded pictures.
Every loader process reads shards of its own, so which frames share a batch depends on their number as well, which a resumed
run must keep.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from edge.errors import TrainingError
from edge.methods import Views
from edge.shards import Shard, ShardSet
from edge.snapshot import MOST_DAMAGED
from edge.view_loader import LoaderSpec, Made, batches_of, stacked
from runtime.errors import EdgeloopError, SourceError
from runtime.images import decode_image

_BUFFER = 2000  # encoded pictures; some 100 MB at 640 pixels


class ShardLoader:
    """As `ViewLoader`, over shards."""

    def __init__(self, shards: ShardSet, views: Views, spec: LoaderSpec) -> None:
        """Raises TrainingError if there are fewer shards than processes that read them."""
        self._shards, self._views, self._spec = shards, views, spec
        self.damaged: dict[str, None] = {}
        readers = max(1, spec.workers) * spec.world
        if len(shards.index.shards) < readers:
            raise TrainingError(
                f"{len(shards.index.shards)} shards for {readers} readers; take fewer --workers, or export smaller shards"
            )
        # Every process must have as many batches as the others, or those that train together would wait for ever.
        self._each = min(
            sum(shard.frames for shard in shards.index.shards[rank :: spec.world]) // self._batch for rank in range(spec.world)
        )
        if self.steps < 1:
            raise TrainingError(f"{len(shards)} frames in shards give no batch of {spec.batch}; lower --batch or --workers")

    @property
    def _batch(self) -> int:
        return self._spec.batch // self._spec.world

    @property
    def steps(self) -> int:
        """Batches in an epoch; a little less than all frames, since every reader leaves a rest."""
        return self._each - max(1, self._spec.workers)

    def epoch(self, number: int, first_step: int = 0) -> Iterator[tuple[torch.Tensor, ...]]:
        """The batches of an epoch from one on.

        Raises:
            TrainingError: a shard cannot be read, too many frames are damaged, or a loader process was killed.
        """
        stream = _ShardViews(self._shards, self._views, self._spec, number, first_step)
        for step, (views, damaged) in enumerate(batches_of(stream, num_workers=self._spec.workers), first_step):
            self.damaged.update(dict.fromkeys(damaged))
            if len(self.damaged) > MOST_DAMAGED * len(self._shards):
                raise TrainingError(
                    f"{len(self.damaged)} of {len(self._shards)} frames are damaged, first {next(iter(self.damaged))}"
                )
            yield views
            if step + 1 >= self.steps:
                return


class _ShardViews(torch.utils.data.IterableDataset[Made]):
    """What one reader gives: its batches, one after the other."""

    def __init__(self, shards: ShardSet, views: Views, spec: LoaderSpec, epoch: int, first_step: int) -> None:
        self._shards, self._views, self._spec, self._epoch, self._first = shards, views, spec, epoch, first_step

    def __iter__(self) -> Iterator[Made]:
        try:
            yield from self._batches()
        except EdgeloopError as error:
            yield TrainingError(f"{error}")

    def _batches(self) -> Iterator[Made]:
        info = torch.utils.data.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        spec, batch = self._spec, self._spec.batch // self._spec.world
        # Batches come from the workers in turn; those before `first_step` are passed over without being decoded.
        passed = len(range(worker, self._first, workers)) * batch
        # The first batch after a resume must come from the worker whose turn it is.
        if workers > 1 and self._first % workers:
            raise TrainingError("a run over shards with --workers resumes at the ends of epochs or of rounds of workers only")
        mine = list(self._shards.index.shards[spec.rank :: spec.world])
        order = np.random.default_rng((spec.seed, self._epoch)).permutation(len(mine))
        chosen = [mine[index] for index in order[worker::workers]]
        made: list[tuple[torch.Tensor, ...]] = []
        damaged: list[str] = []
        for position, (name, data) in enumerate(self._mixed(chosen, (spec.seed, self._epoch, spec.rank, worker))):
            if position < passed:
                continue
            try:
                image = decode_image(data, name)
                made.append(self._views(image, np.random.default_rng((spec.seed, self._epoch, spec.rank, worker, position))))
            except SourceError:
                damaged.append(name)
                if made:  # the place is filled, or readers would have unequal numbers of batches
                    made.append(made[-1])
            if len(made) == batch:
                yield stacked(made, batch), damaged
                made, damaged = [], []

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
