"""Frames of a pool that are (nearly) held-out images: every later figure would be too good.

A fixed camera's frames all look alike in small, so what is alike there is looked at again: a leak is alike in every part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.pool_frames import readable
from runtime.images import read_image
from runtime.pool import Pool
from runtime.progress import Progress

_SMALL, _LARGE, _PART = 32, 256, 8  # pixels: sides of the two pictures, and of the parts of the large one
_ALIKE = 0.97  # correlation of two small pictures, from which on they are looked at again
_SAME_LEVELS = 12.0  # mean grey levels by which no part may differ: what a JPEG of another quality changes
_GAINS = (0.4, 2.5)  # of one picture's contrast over the other's


class HeldOut:
    """Pictures that nothing may be learnt from."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads them.

        Raises:
            SourceError: a damaged image.
        """
        self._paths = list(paths)
        self._large = [_grey(read_image(path)) for path in paths]  # 64 KB each
        self._small = np.stack([_small(grey) for grey in self._large]) if self._large else np.zeros((0, _SMALL**2), np.float32)

    def shown_by(self, image: NDArray[np.uint8]) -> Path | None:
        """The one that an image, uint8 (h, w, 3) BGR, shows, if any."""
        own = _grey(image)
        alike = np.flatnonzero(self._small @ _small(own) >= _ALIKE).tolist()
        return next((self._paths[index] for index in alike if _same(own, self._large[index])), None)


def leaks_of(pool: Pool, held_out: Sequence[Path]) -> dict[str, Path]:
    """By digest: frames of the pool that show a held-out image, and which.

    Raises:
        PoolError: too many damaged frames.
        SourceError: a damaged image.
    """
    if not held_out:
        return {}
    kept = HeldOut(held_out)
    found: dict[str, Path] = {}
    entries = pool.entries(with_embeddings=False)
    with Progress("leaks", len(entries)) as progress:
        for entry, image in readable(pool, entries):
            shown = kept.shown_by(image)
            if shown is not None:
                found[entry.sha256] = shown
            progress.advance("")
    return found


def same_picture(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    """Whether two pictures, uint8 (h, w, 3) BGR of any sizes, show the same in every part, whatever brightness and contrast."""
    return _same(_grey(first), _grey(second))


def _same(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    one, other = (grey.astype(np.float32) - float(grey.mean()) for grey in (first, second))
    gain = float(one.std()) / max(1e-6, float(other.std()))
    if not _GAINS[0] <= gain <= _GAINS[1]:
        return False
    return float(np.abs(cv2.blur(one - gain * other, (_PART, _PART))).max()) <= _SAME_LEVELS


def _small(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A unit vector."""
    vector = cv2.resize(grey, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    vector -= vector.mean()
    return np.asarray(vector / max(1e-6, float(np.linalg.norm(vector))), np.float32)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The large picture, uint8 (256, 256)."""
    way = cv2.INTER_AREA if min(image.shape[:2]) >= _LARGE else cv2.INTER_LINEAR
    return np.asarray(cv2.cvtColor(cv2.resize(image, (_LARGE, _LARGE), interpolation=way), cv2.COLOR_BGR2GRAY), np.uint8)
