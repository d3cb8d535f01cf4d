"""Frames that must outlive their pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.pinned import PinnedFrames
from runtime.errors import PoolError
from runtime.pool import Pool
from tests.conftest import fill_pool


def test_pinned_frames__an_evicted_frame_stays_readable(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 3)
    (tmp_path / "pinned").mkdir()
    with Pool.create(tmp_path / "pool") as pool:
        entries = pool.entries()
        pinned = PinnedFrames(pool, tmp_path / "pinned")
        pinned.pin(entries[:2])
        expected = pool.read(entries[0])
        for entry in entries:
            pool.remove(entry)
        np.testing.assert_array_equal(pinned.read(entries[0]), expected)
        with pytest.raises(PoolError, match="cannot be kept at hand: No such file or directory; start again"):
            pinned.read(entries[2])


def test_pinned_frames__a_damaged_frame_is_refused(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 1)
    (tmp_path / "pinned").mkdir()
    with Pool.create(tmp_path / "pool") as pool:
        (entry,) = pool.entries()
        data = pool.file_of(entry).read_bytes()
        pool.file_of(entry).write_bytes(data[:-40])
        with pytest.raises(PoolError, match="is damaged; remove such frames"):
            PinnedFrames(pool, tmp_path / "pinned").read(entry)
