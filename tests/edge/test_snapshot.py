from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.errors import TrainingError
from edge.snapshot import Snapshot
from runtime.errors import PoolError
from runtime.pool import Pool
from tests.conftest import fill_pool


def test_take__survives_eviction_and_keeps_the_order(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 5)
    snapshot = Snapshot.take(tmp_path / "pool", tmp_path / "run", until_s=1003.0, at_least=2)
    with Pool.create(tmp_path / "pool") as pool:
        entries = pool.entries()
        pictures = [pool.read(entry) for entry in entries]
        for entry in entries:
            pool.remove(entry)
    again = Snapshot(tmp_path / "run")
    assert len(again) == 4
    assert again.digest == snapshot.digest
    for position in range(4):
        np.testing.assert_array_equal(again.read(position), pictures[position])
    Snapshot.remove(tmp_path / "run")
    with pytest.raises(TrainingError, match="to resume on"):
        Snapshot(tmp_path / "run")


def test_take__too_few_frames_leave_no_trace(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 1)
    with pytest.raises(TrainingError, match="but 2 are needed"):
        Snapshot.take(tmp_path / "pool", tmp_path / "run", None, at_least=2)
    with pytest.raises(PoolError, match="is empty"):
        Snapshot.take(tmp_path / "pool", tmp_path / "run", 1.0, at_least=1)
    assert not (tmp_path / "run").exists()


def test_take__somebodys_own_files_stay(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 2)
    own = tmp_path / "run" / "frames" / "holiday.jpg"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    with pytest.raises(TrainingError, match="holds other files"):
        Snapshot.take(tmp_path / "pool", tmp_path / "run", None, at_least=2)
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["frames", "holiday.jpg"]
