"""Reads the frames of a pool that a daemon may be writing to, and that may have a damaged one."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from runtime.errors import PoolError
from runtime.images import MOST_DAMAGED
from runtime.pool import Pool, PoolEntry


def readable(pool: Pool, entries: Iterable[PoolEntry]) -> Iterator[tuple[PoolEntry, NDArray[np.uint8]]]:
    """Entries with their frames, uint8 (h, w, 3) BGR; what was evicted meanwhile is left out, as is what is damaged, which is named.

    Raises:
        PoolError: more than a twentieth of them are damaged.
    """
    entries = list(entries)
    damaged = 0
    for entry in entries:
        try:
            image = pool.read(entry)
        except PoolError as error:
            if not pool.file_of(entry).exists():
                continue
            damaged += 1
            if damaged > MOST_DAMAGED * len(entries):
                raise PoolError(
                    f"at least {damaged} of {len(entries)} frames are damaged, more than 5 %, this one as well: {error}"
                ) from error
            sys.stderr.write(f"left out: {error}\n")
            continue
        yield entry, image
