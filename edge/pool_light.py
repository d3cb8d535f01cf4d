"""Labelled images in the pool's light: colour transfer (Reinhard et al. 2001) as an augmentation.

The kept labels show the scene as it was; the pool shows how its light is now. Giving a labelled image the per-channel
mean and deviation of a random pool frame lets the re-tuning see both, without a new label.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.pool_frames import readable
from runtime.files import write_atomically
from runtime.pool import Pool

_SHARE = 0.5  # of the images; the others stay as they were labelled
_MOST_FRAMES = 256
_GAIN = (0.2, 3.0)  # a nearly flat frame must not blow up an image's contrast


class PoolLight:
    """Per-channel statistics of pool frames, and their transfer to other images."""

    def __init__(self, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        """Of n frames.

        Args:
            mean: (n, 3), BGR, 0 to 255.
            std: the same.
        """
        self._mean, self._std = mean, std

    @classmethod
    def measured(cls, pool: Path, until_s: float | None, seed: int) -> PoolLight:
        """Of up to 256 frames, drawn at random.

        Raises:
            PoolError: no pool, or too many damaged frames.
        """
        with Pool.open(pool) as opened:
            entries = opened.entries(until_s)
            chosen = np.random.default_rng(seed).permutation(len(entries))[:_MOST_FRAMES]
            frames = [frame for _, frame in readable(opened, (entries[index] for index in sorted(chosen)))]
        mean = np.array([frame.mean(axis=(0, 1)) for frame in frames], np.float32).reshape(-1, 3)
        return cls(mean, np.array([frame.std(axis=(0, 1)) for frame in frames], np.float32).reshape(-1, 3))

    @classmethod
    def kept(cls, path: Path, pool: Path, until_s: float | None, seed: int) -> PoolLight:
        """As a run began with it: from a file, or measured and written there. A pool changes while a run is cut."""
        if not path.is_file():
            light = cls.measured(pool, until_s, seed)
            content = {"mean": light._mean.tolist(), "std": light._std.tolist()}
            write_atomically(path, json.dumps(content).encode())
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(*(np.array(found[name], np.float32).reshape(-1, 3) for name in ("mean", "std")))

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A uint8 (h, w, 3) BGR image in the light of a random frame, or as it is. Draws from numpy's global stream."""
        if not len(self._mean) or np.random.random() >= _SHARE:  # noqa: NPY002  seeded per epoch by `seed_everything`
            return image
        row = np.random.randint(len(self._mean))  # noqa: NPY002  as above
        mean, std = image.mean(axis=(0, 1)), image.std(axis=(0, 1))
        gain = np.clip(self._std[row] / np.maximum(std, 1.0), *_GAIN)
        return np.asarray(np.clip((image - mean) * gain + self._mean[row], 0, 255), np.uint8)
