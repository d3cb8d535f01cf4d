"""Which frames of a pool calibrate, and which ones check the result.

The check's frames are drawn first, spread over the pool's time, and are kept out of every draw for calibration. Which of
the samplers is the default was measured: benchmarks/results/calibration_samplers.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration.coverage_map import CoverageMap, coverage_map
from runtime.errors import PoolError
from runtime.pool import Pool, PoolEntry

T = TypeVar("T")
Embed = Callable[[Sequence[PoolEntry]], NDArray[np.float32]]

DEFAULT_SAMPLER = "k-center"
NEAR_DUPLICATE_COSINE = 0.999  # of pooled neck features; frames of a still camera lie above, of a moving scene below
# Embedding a frame costs one FP32 inference, so a large pool is thinned by time before it is embedded.
CANDIDATES_PER_FRAME = 6
MIN_CANDIDATES = 512
_NEIGHBOURS = 20  # typicality: mean distance to this many nearest frames (Hacohen et al. 2022, TypiClust)


@dataclass(frozen=True, slots=True)
class CalibrationFrames:
    """The draw: `calibration` sets the ranges, `held_out` checks them; they share no frame.

    Attributes:
        calibration: oldest first.
        held_out: oldest first; empty when the pool is too small to spare any.
        sampler: how they were drawn.
        seed: of the draw.
        candidates: how many frames were looked at.
        duplicates: how many of them were left out because another one looks the same.
        like_checked: how many of those that calibrate look like a frame of the check; a still camera has no others.
        radius: largest cosine distance from a candidate to its nearest calibration frame, 0 to 2; None for samplers that look
            at no embedding.
        mean_distance: the same, averaged over the candidates.
        map: the candidates in two dimensions; None without embeddings.
    """

    calibration: tuple[PoolEntry, ...]
    held_out: tuple[PoolEntry, ...]
    sampler: str
    seed: int
    candidates: int = 0
    duplicates: int = 0
    like_checked: int = 0
    radius: float | None = None
    mean_distance: float | None = None
    map: CoverageMap | None = None


@dataclass(frozen=True, slots=True)
class Draw:
    """What is wanted of a pool.

    Attributes:
        count: calibration frames.
        held_out: frames for the check; at most a quarter of the pool is spared for them.
        sampler: one of `SAMPLERS`.
        seed: of every random choice.
        until_s: use frames captured up to this Unix time; None for all.
        without: SHA-256 of frames that must not be drawn.
        least: so few calibration frames will do, rather than frames that look like the check's; None: `count` it must be.
    """

    count: int
    held_out: int
    sampler: str = DEFAULT_SAMPLER
    seed: int = 0
    until_s: float | None = None
    without: frozenset[str] = frozenset()
    least: int | None = None


def sample_frames(
    pool: Pool, draw: Draw, embed: Embed | None = None, checked: NDArray[np.float32] | None = None
) -> CalibrationFrames:
    """Draws frames for calibration and for the check.

    Args:
        pool: where from.
        draw: how many, and how.
        checked: float32 (m, d), embeddings of images elsewhere that check the result; frames that look like them are left out.
        embed: float32 (n, d) L2-normalised embeddings of entries; without it, the samplers that need none can be used,
            and near-duplicates stay in.

    Raises:
        PoolError: the pool is empty or has fewer frames than asked, or the sampler is unknown.
    """
    if draw.sampler not in SAMPLERS:
        raise PoolError(f"unknown sampler {draw.sampler!r}; the samplers are {', '.join(SAMPLERS)}")
    entries = [entry for entry in pool.entries(draw.until_s, with_embeddings=False) if entry.sha256 not in draw.without]
    if not entries:
        raise PoolError(
            f"pool {pool.path} has no frame to calibrate with; fill it with: edge pool add {pool.path} IMAGES, or run the daemon with `collect`"
        )
    checks = time_spread(entries, min(draw.held_out, len(entries) // 4), draw.seed + 1)
    spared = {entry.sha256 for entry in checks}
    rest = [entry for entry in entries if entry.sha256 not in spared]
    if len(rest) < draw.count:
        raise PoolError(
            f"pool {pool.path} has {len(entries)} usable frames, {len(checks)} of them for the check, but --frames asks for {draw.count}; "
            f"collect more, or use --frames {len(rest)}"
        )
    if embed is not None and draw.sampler in BY_EMBEDDING and checks:
        checked = embed(checks)
    frames = _drawn(rest, draw, embed, checked)
    return replace(frames, held_out=tuple(checks))


def _drawn(
    entries: Sequence[PoolEntry], draw: Draw, embed: Embed | None, checked: NDArray[np.float32] | None
) -> CalibrationFrames:
    if embed is None or draw.sampler not in BY_EMBEDDING:
        chosen = SAMPLERS[draw.sampler](np.zeros((len(entries), 0), np.float32), draw.count, draw.seed)
        picked = tuple(entries[row] for row in sorted(chosen))
        return CalibrationFrames(picked, (), draw.sampler, draw.seed, len(entries))
    candidates = time_spread(entries, max(MIN_CANDIDATES, CANDIDATES_PER_FRAME * draw.count), draw.seed)
    embeddings = embed(candidates)
    everything = list(range(len(candidates)))
    # What was calibrated on must not check the result, so frames like the check's come back last of all.
    fresh = everything if checked is None else unlike(embeddings, everything, checked)
    distinct = [fresh[row] for row in distinct_rows(embeddings[fresh], NEAR_DUPLICATE_COSINE)]
    enough = draw.count if draw.least is None else min(draw.least, draw.count)
    allowed = distinct if len(distinct) >= draw.count else fresh
    chosen = _picked(draw, embeddings, allowed, min(draw.count, len(allowed)))
    if len(chosen) < enough:
        chosen += _picked(draw, embeddings, [row for row in everything if row not in set(fresh)], draw.count - len(chosen))
    radius, mean = coverage(embeddings, embeddings[chosen])
    picked = tuple(candidates[row] for row in sorted(chosen))
    return CalibrationFrames(
        picked, (), draw.sampler, draw.seed, len(candidates), len(candidates) - max(len(allowed), len(chosen)),
        len(set(chosen) - set(fresh)), radius, mean, coverage_map(embeddings, chosen),
    )  # fmt: skip


def _picked(draw: Draw, embeddings: NDArray[np.float32], rows: Sequence[int], count: int) -> list[int]:
    return [rows[row] for row in SAMPLERS[draw.sampler](embeddings[list(rows)], count, draw.seed)] if rows else []


def distinct_rows(embeddings: NDArray[np.float32], cosine: float) -> list[int]:
    """Rows in order, without those whose cosine with an earlier kept row exceeds `cosine`."""
    kept: list[int] = []
    for row, vector in enumerate(embeddings):
        if not kept or float((embeddings[kept] @ vector).max()) <= cosine:
            kept.append(row)
    return kept


def unlike(embeddings: NDArray[np.float32], rows: Sequence[int], others: NDArray[np.float32]) -> list[int]:
    """Those of `rows` whose cosine with every one of `others` (m, d) stays within `NEAR_DUPLICATE_COSINE`."""
    if not len(rows):
        return []
    nearest = (embeddings[list(rows)] @ others.T).max(axis=1)
    return [row for row, cosine in zip(rows, nearest, strict=True) if cosine <= NEAR_DUPLICATE_COSINE]


def coverage(embeddings: NDArray[np.float32], chosen: NDArray[np.float32]) -> tuple[float, float]:
    """Largest and mean cosine distance from each of `embeddings` (n, d) to the nearest of `chosen` (m, d)."""
    distance = np.maximum(1 - (embeddings @ chosen.T).max(axis=1), 0)
    return float(distance.max()), float(distance.mean())


def first_n(embeddings: NDArray[np.float32], count: int, seed: int) -> list[int]:
    """The oldest ones: what a tool does that takes the first files of a folder. For comparison."""
    return list(range(min(count, len(embeddings))))


def uniform(embeddings: NDArray[np.float32], count: int, seed: int) -> list[int]:
    """Random ones. For comparison."""
    rng = np.random.default_rng(seed)
    return rng.permutation(len(embeddings))[:count].tolist()  # type: ignore[no-any-return]


def spread(embeddings: NDArray[np.float32], count: int, seed: int) -> list[int]:
    """One from each of `count` equal stretches of time."""
    return time_spread(range(len(embeddings)), count, seed)


def k_center(embeddings: NDArray[np.float32], count: int, seed: int) -> list[int]:
    """Greedy k-center (Gonzalez 1985): always the frame farthest from all chosen ones, so that none is left far away."""
    if count >= len(embeddings):
        return list(range(len(embeddings)))
    chosen = [int(np.random.default_rng(seed).integers(len(embeddings)))]
    nearest = 1 - embeddings @ embeddings[chosen[0]]
    while len(chosen) < count:
        nearest[chosen[-1]] = -1
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, 1 - embeddings @ embeddings[chosen[-1]])
    return chosen


def typicality(embeddings: NDArray[np.float32], count: int, seed: int) -> list[int]:
    """The most typical frame of each of `count` clusters (TypiClust, Hacohen et al. 2022, arXiv 2202.02794)."""
    if count >= len(embeddings):
        return list(range(len(embeddings)))
    centres = embeddings[k_center(embeddings, count, seed)]
    for _ in range(10):  # Lloyd's iterations on the sphere; it settles in a few
        label = (embeddings @ centres.T).argmax(axis=1)
        sums = np.stack(
            [
                embeddings[label == cluster].sum(axis=0) if (label == cluster).any() else centres[cluster]
                for cluster in range(count)
            ]
        )
        centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    chosen = []
    for cluster in range(count):
        rows = np.flatnonzero(label == cluster)
        if len(rows):
            near = np.sort(1 - embeddings[rows] @ embeddings[rows].T, axis=1)[:, : _NEIGHBOURS + 1]
            chosen.append(int(rows[near.mean(axis=1).argmin()]))
    rest = [row for row in k_center(embeddings, len(embeddings), seed) if row not in set(chosen)]
    return chosen + rest[: count - len(chosen)]  # empty clusters


def time_spread(ordered: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` items of an ordered sequence, one from each of `count` equal stretches; all, if there are no more."""
    if count >= len(ordered):
        return list(ordered)
    rng = np.random.default_rng(seed)
    edges = np.linspace(0, len(ordered), count + 1)
    return [ordered[int(rng.integers(int(low), max(int(low) + 1, int(high))))] for low, high in itertools.pairwise(edges)]


# The others draw from all frames as they are, like the tools that they stand for.
BY_EMBEDDING = ("k-center", "typicality")
SAMPLERS: dict[str, Callable[[NDArray[np.float32], int, int], list[int]]] = {
    "first-n": first_n,
    "random": uniform,
    "time-spread": spread,
    "k-center": k_center,
    "typicality": typicality,
}
