from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.sampler import SAMPLERS, Draw, coverage, distinct_rows, k_center, sample_frames, time_spread, typicality
from runtime.errors import PoolError
from runtime.pool import Pool, PoolEntry
from tests.conftest import fill_pool


@given(st.integers(0, 300), st.integers(0, 80), st.integers(0, 1000))
def test_time_spread__one_of_each_stretch(length: int, count: int, seed: int) -> None:
    picked = time_spread(range(length), count, seed)
    assert len(picked) == min(length, count)
    assert picked == sorted(set(picked))
    if 0 < count < length:
        gaps = [b - a for a, b in itertools.pairwise(picked)]
        assert max(gaps, default=0) <= 2 * -(-length // count)
    assert picked == time_spread(range(length), count, seed)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@given(st.sampled_from(sorted(SAMPLERS)), st.integers(1, 60), st.integers(1, 70), st.integers(0, 99))
def test_samplers__distinct_rows_in_number_and_seeded(name: str, length: int, count: int, seed: int) -> None:
    embeddings = unit(np.random.default_rng(seed).normal(size=(length, 8)))
    chosen = SAMPLERS[name](embeddings, count, seed)
    assert len(chosen) == len(set(chosen)) == min(count, length)
    assert set(chosen) <= set(range(length))
    assert chosen == SAMPLERS[name](embeddings, count, seed)


def clustered() -> NDArray[np.float32]:
    """90 frames of one scene, then 5 of another and 5 of a third: what a camera's pool looks like."""
    rng = np.random.default_rng(0)
    centres = np.eye(8)[[0] * 90 + [1] * 5 + [2] * 5]
    return unit(centres + 0.05 * rng.normal(size=(100, 8)))


def test_k_center__covers_rare_scenes_that_first_n_misses() -> None:
    embeddings = clustered()
    covered = coverage(embeddings, embeddings[k_center(embeddings, 6, 0)])
    missed = coverage(embeddings, embeddings[SAMPLERS["first-n"](embeddings, 6, 0)])
    assert covered[0] < 0.2 < 0.8 < missed[0]
    assert covered[1] <= missed[1]


def test_typicality__the_middle_of_each_cluster_and_no_outlier() -> None:
    embeddings = clustered()
    chosen = typicality(embeddings, 3, 0)
    assert sorted({0 if row < 90 else 1 if row < 95 else 2 for row in chosen}) == [0, 1, 2]
    middle = np.argsort(-(embeddings[:90] @ embeddings[:90].mean(axis=0)))[:45]
    assert min(chosen) in middle


def test_distinct_rows__the_first_of_like_ones() -> None:
    rows = unit(np.array([[1, 0], [1, 0.001], [0, 1], [0.001, 1], [1, 1]]))
    assert distinct_rows(rows, 0.999) == [0, 2, 4]


def test_sample_frames__disjoint_seeded_and_oldest_first(pool_dir: Path) -> None:
    with Pool.open(pool_dir) as pool:
        first, again, other = (sample_frames(pool, Draw(12, 6, "time-spread", seed)) for seed in (0, 0, 1))
        assert first == again
        assert first.calibration != other.calibration
        calibration, held_out = ({entry.sha256 for entry in part} for part in (first.calibration, first.held_out))
        assert (len(calibration), len(held_out)) == (12, 6)
        assert calibration.isdisjoint(held_out)
        times = [entry.captured_wall_s for entry in first.calibration]
        assert times == sorted(times)


def test_sample_frames__by_embedding_without_near_duplicates(pool_dir: Path) -> None:
    def embed(entries: Sequence[PoolEntry]) -> NDArray[np.float32]:
        scene = [int(entry.captured_wall_s - 1000) // 4 for entry in entries]  # four frames in a row look the same
        return np.eye(8, dtype=np.float32)[scene]

    with Pool.open(pool_dir) as pool:
        frames = sample_frames(pool, Draw(5, 0, "k-center"), embed)
        assert len({int(entry.captured_wall_s - 1000) // 4 for entry in frames.calibration}) == 5
        assert (frames.candidates, frames.duplicates) == (24, 18)
        assert frames.radius == pytest.approx(1.0)  # six scenes, five chosen
        all_scenes = sample_frames(pool, Draw(6, 0, "k-center"), embed)
        assert all_scenes.radius == pytest.approx(0.0)
        one_checked = sample_frames(pool, Draw(5, 1, "k-center"), embed)  # its scene must not calibrate
        scene = {int(entry.captured_wall_s - 1000) // 4 for entry in one_checked.held_out}
        assert scene.isdisjoint({int(entry.captured_wall_s - 1000) // 4 for entry in one_checked.calibration})


@pytest.mark.parametrize(
    ("draw", "count", "like_checked"),
    [
        (Draw(4, 0, "k-center"), 4, 0),
        (Draw(20, 0, "k-center"), 20, 0),  # with near-duplicates, but none of the checked scene
        (Draw(22, 0, "k-center"), 22, 2),  # more than there are elsewhere, and that many are wanted
        (Draw(22, 0, "k-center", least=12), 20, 0),
    ],
)
def test_sample_frames__what_looks_like_the_check_calibrates_last(
    pool_dir: Path, draw: Draw, count: int, like_checked: int
) -> None:
    def embed(entries: Sequence[PoolEntry]) -> NDArray[np.float32]:
        return np.eye(8, dtype=np.float32)[[int(entry.captured_wall_s - 1000) // 4 for entry in entries]]

    with Pool.open(pool_dir) as pool:
        frames = sample_frames(pool, draw, embed, checked=np.eye(8, dtype=np.float32)[:1])
    assert (len(frames.calibration), frames.like_checked) == (count, like_checked)
    assert sum(entry.captured_wall_s < 1004 for entry in frames.calibration) == like_checked


def test_sample_frames__without_given_ones_until_a_time(pool_dir: Path) -> None:
    with Pool.open(pool_dir) as pool:
        first = pool.entries()[0].sha256
        draw = Draw(5, 2, "time-spread", until_s=1007.0, without=frozenset([first]))
        frames = sample_frames(pool, draw)
    found = {entry.captured_wall_s for entry in (*frames.calibration, *frames.held_out)}
    assert found <= {1001.0 + index for index in range(7)}


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (Draw(64, 6, "time-spread"), r"24 usable frames, 6 of them for the check, but --frames asks for 64; .* --frames 18"),
        (Draw(4, 2, "best"), "unknown sampler 'best'; the samplers are first-n"),
    ],
)
def test_sample_frames__refusals(pool_dir: Path, draw: Draw, message: str) -> None:
    with Pool.open(pool_dir) as pool, pytest.raises(PoolError, match=message):
        sample_frames(pool, draw)


def test_sample_frames__empty_pool(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 0)
    with Pool.open(tmp_path / "pool") as pool, pytest.raises(PoolError, match=r"no frame to calibrate with; fill it with"):
        sample_frames(pool, Draw(4, 2))
