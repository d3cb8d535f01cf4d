"""Which frames of a pool calibrate, and which ones check the result."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from runtime.errors import PoolError
from runtime.pool import Pool, PoolEntry

T = TypeVar("T")

TIME_SPREAD = "time-spread"


@dataclass(frozen=True, slots=True)
class CalibrationFrames:
    """The draw: `calibration` sets the ranges, `held_out` checks them; they share no frame.

    Attributes:
        calibration: oldest first.
        held_out: oldest first; empty when the pool is too small to spare any.
        sampler: how they were drawn.
        seed: of the draw.
    """

    calibration: tuple[PoolEntry, ...]
    held_out: tuple[PoolEntry, ...]
    sampler: str
    seed: int


def sample_frames(pool: Pool, count: int, held_out: int, seed: int, until_s: float | None = None) -> CalibrationFrames:
    """Draws calibration and held-out frames spread over the pool's time, up to the Unix time `until_s`.

    Neighbouring frames of a video are nearly the same picture, so the time line is cut into as many stretches as frames
    are wanted, and one frame is drawn from each. A pool with fewer than `count + held_out` frames gives at most
    a quarter of them to the check.

    Raises:
        PoolError: the pool is empty.
    """
    entries = pool.entries(until_s)
    if not entries:
        raise PoolError(
            f"pool {pool.path} is empty; fill it with: edge pool add {pool.path} IMAGES, or run the daemon with `collect`"
        )
    spared = min(held_out, len(entries) // 4)
    picked = time_spread(entries, min(count, len(entries) - spared) + spared, seed)
    checks = {entry.sha256 for entry in time_spread(picked, spared, seed + 1)}
    return CalibrationFrames(
        tuple(entry for entry in picked if entry.sha256 not in checks),
        tuple(entry for entry in picked if entry.sha256 in checks),
        TIME_SPREAD,
        seed,
    )


def time_spread(ordered: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` items of an ordered sequence, one from each of `count` equal stretches; all, if there are no more."""
    if count >= len(ordered):
        return list(ordered)
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, len(ordered), count + 1)
    return [ordered[int(rng.integers(int(low), max(int(low) + 1, int(high))))] for low, high in itertools.pairwise(edges)]
