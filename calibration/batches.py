"""Pool frames as the graph's input, through the very letterbox that the daemon uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from calibration.pinned import FrameReader
from runtime.pool import PoolEntry
from runtime.preprocess import Preprocess


class PoolBatches:
    """An iterable of uint8 (batch, h, w, 3) canvases; a fresh array each, decoded one at a time, so memory stays bounded.

    A last batch that is not full is filled with its own first frames.
    """

    def __init__(self, frames: FrameReader, entries: Sequence[PoolEntry], preprocess: Preprocess, batch: int = 1) -> None:
        self._frames, self._entries = frames, entries
        self._preprocess, self._batch = preprocess, batch

    def __len__(self) -> int:
        return -(-len(self._entries) // self._batch)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self._entries), self._batch):
            rows = self._entries[start : start + self._batch]
            canvas = self._preprocess.buffer(self._batch)
            for row in range(self._batch):
                self._preprocess.letterbox(self._frames.read(rows[row % len(rows)]), canvas[row])
            yield canvas
