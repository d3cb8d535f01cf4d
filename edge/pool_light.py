"""Labelled images in the pool's light: colour transfer (Reinhard et al. 2001) as an augmentation.

The kept labels show the scene as it was; the pool shows how its light is now. Giving a labelled image the per-channel
mean and deviation of a random pool frame lets the re-tuning see both, without a new label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.pool import Pool

_SHARE = 0.5  # of the images; the others stay as they were labelled
_MOST_FRAMES = 256
_GAIN = (0.2, 3.0)  # a nearly flat frame must not blow up an image's contrast


class PoolLight:
    """Per-channel statistics of pool frames, and their transfer to other images."""

    def __init__(self, pool: Path, until_s: float | None, seed: int) -> None:
        """Measures up to 256 frames, drawn at random.

        Raises:
            PoolError: no pool, or a damaged frame.
        """
        with Pool.open(pool) as opened:
            entries = opened.entries(until_s)
            chosen = np.random.default_rng(seed).permutation(len(entries))[:_MOST_FRAMES]
            frames = [opened.read(entries[index]) for index in sorted(chosen)]
        self._mean = np.array([frame.mean(axis=(0, 1)) for frame in frames], np.float32).reshape(-1, 3)
        self._std = np.array([frame.std(axis=(0, 1)) for frame in frames], np.float32).reshape(-1, 3)

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A uint8 (h, w, 3) BGR image in the light of a random frame, or as it is. Draws from numpy's global stream."""
        if not len(self._mean) or np.random.random() >= _SHARE:  # noqa: NPY002  seeded per epoch by `seed_everything`
            return image
        row = np.random.randint(len(self._mean))  # noqa: NPY002  as above
        mean, std = image.mean(axis=(0, 1)), image.std(axis=(0, 1))
        gain = np.clip(self._std[row] / np.maximum(std, 1.0), *_GAIN)
        return np.asarray(np.clip((image - mean) * gain + self._mean[row], 0, 255), np.uint8)
