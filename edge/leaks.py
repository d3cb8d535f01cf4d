"""Frames of a pool that are (nearly) held-out images: every later figure would be too good.

A fixed camera's frames all look alike in small, so what is alike there is looked at again: a leak is alike in every part.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.images import decode_image, read_image
from runtime.pool import Pool
from runtime.progress import Progress

_SMALL, _LARGE, _PARTS = 32, 256, 16  # pixels of a side, pixels of a side, parts of a side
_ALIKE = 0.97  # correlation of two small pictures, from which on they are looked at again
_SAME_LEVELS = 12.0  # mean grey levels by which no part may differ: what a JPEG of another quality changes


def leaks_of(pool: Pool, held_out: Sequence[Path]) -> dict[str, Path]:
    """By digest: frames of the pool that show a held-out image, and which.

    Raises:
        PoolError: a damaged frame.
        SourceError: a damaged image.
    """
    if not held_out:
        return {}
    known = np.stack([_small(read_image(path)) for path in held_out])
    found: dict[str, Path] = {}
    entries = pool.entries(with_embeddings=False)
    with Progress("leaks", len(entries)) as progress:
        for entry in entries:
            image = decode_image(pool.read_jpeg(entry), entry.sha256)
            alike = known @ _small(image)
            for index in np.flatnonzero(alike >= _ALIKE).tolist():
                if same_picture(image, read_image(held_out[index])):
                    found[entry.sha256] = held_out[index]
                    break
            progress.advance("")
    return found


def same_picture(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    """Whether two pictures, uint8 (h, w, 3) BGR of any sizes, show the same in every part, whatever the light."""
    one, other = (_grey(image, _LARGE) for image in (first, second))
    apart = np.abs((one - one.mean()) - (other - other.mean()))
    side = _LARGE // _PARTS
    parts = apart.reshape(_PARTS, side, _PARTS, side).mean((1, 3))
    return float(parts.max()) <= _SAME_LEVELS


def _small(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    vector = _grey(image, _SMALL)
    vector = (vector - vector.mean()).ravel()
    return np.asarray(vector / max(1e-6, float(np.linalg.norm(vector))), np.float32)


def _grey(image: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    return cv2.cvtColor(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY).astype(np.float32)
