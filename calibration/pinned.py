"""Frames of a pool that stay readable: a daemon beside a long conversion goes on evicting."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import PoolError
from runtime.files import link_or_copy
from runtime.images import decode_image
from runtime.pool import Pool, PoolEntry


class FrameReader(Protocol):
    """Whatever pictures of pool entries are read from: a pool, or frames that were pinned."""

    def read(self, entry: PoolEntry) -> NDArray[np.uint8]:
        """The frame as uint8 (h, w, 3) BGR.

        Raises:
            PoolError: it is gone or damaged.
        """
        ...


class PinnedFrames:
    """Links to chosen frames in a folder of the caller's; across file systems they are copied."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        """Nothing is pinned yet."""
        self._pool, self._folder = pool, folder

    def pin(self, entries: Iterable[PoolEntry]) -> None:
        """Keeps these.

        Raises:
            PoolError: one was evicted meanwhile, or the folder is full.
        """
        for entry in entries:
            if self._path(entry).exists():
                continue
            try:
                link_or_copy(self._pool.file_of(entry), self._path(entry))
            except OSError as error:
                raise PoolError(
                    f"{self._pool.file_of(entry)} cannot be kept at hand: {error.strerror}; start again, or free some space"
                ) from error

    def read(self, entry: PoolEntry) -> NDArray[np.uint8]:
        """The frame as uint8 (h, w, 3) BGR; raises like `FrameReader.read`."""
        self.pin([entry])
        data = self._path(entry).read_bytes()
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise PoolError(
                f"pool frame {entry.sha256}.jpg is damaged; remove such frames with: edge pool check {self._pool.path} --repair"
            )
        return decode_image(data, f"{entry.sha256}.jpg")

    def _path(self, entry: PoolEntry) -> Path:
        return self._folder / f"{entry.sha256}.jpg"
