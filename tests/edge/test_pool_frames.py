from __future__ import annotations

from pathlib import Path

import pytest

from edge.pool_frames import readable
from runtime.errors import PoolError
from runtime.pool import Pool
from tests.conftest import fill_pool


def test_readable__what_is_evicted_or_damaged_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_pool(tmp_path / "pool", 24)
    with Pool.create(tmp_path / "pool") as pool:
        entries = pool.entries()
        for entry in entries[:5]:
            pool.remove(entry)
        pool.file_of(entries[7]).write_bytes(b"no JPEG")
        found = [entry for entry, _ in readable(pool, entries)]
        assert found == [*entries[5:7], *entries[8:]]
        assert capsys.readouterr().err.count("left out") == 1
        pool.file_of(entries[9]).write_bytes(b"")
        with pytest.raises(PoolError, match="2 of 24 frames are damaged, more than 5 %, this one as well: "):
            list(readable(pool, entries))
