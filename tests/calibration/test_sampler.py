from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.sampler import sample_frames, time_spread
from runtime.errors import PoolError
from runtime.pool import Pool
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


def test_sample_frames__disjoint_seeded_and_oldest_first(pool_dir: Path) -> None:
    with Pool.open(pool_dir) as pool:
        first, again, other = (sample_frames(pool, 12, 6, seed) for seed in (0, 0, 1))
        assert first == again
        assert first.calibration != other.calibration
        calibration, held_out = ({entry.sha256 for entry in part} for part in (first.calibration, first.held_out))
        assert (len(calibration), len(held_out)) == (12, 6)
        assert calibration.isdisjoint(held_out)
        times = [entry.captured_wall_s for entry in first.calibration]
        assert times == sorted(times)


def test_sample_frames__a_small_pool_spares_a_quarter(pool_dir: Path) -> None:
    with Pool.open(pool_dir) as pool:
        frames = sample_frames(pool, 64, 32, 0)
    assert (len(frames.calibration), len(frames.held_out)) == (18, 6)


def test_sample_frames__until_a_time(pool_dir: Path) -> None:
    with Pool.open(pool_dir) as pool:
        frames = sample_frames(pool, 64, 2, 0, until_s=1007.0)
    assert {entry.captured_wall_s for entry in (*frames.calibration, *frames.held_out)} == {1000.0 + i for i in range(8)}


def test_sample_frames__empty_pool(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 0)
    with Pool.open(tmp_path / "pool") as pool, pytest.raises(PoolError, match=r"is empty; fill it with: edge pool add"):
        sample_frames(pool, 4, 2, 0)
