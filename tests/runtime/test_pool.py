from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime.errors import PoolError
from runtime.pool import Pool, Seen
from runtime.sources.simulated import Line
from tests.conftest import ROOT, fill_pool


def agree(path: Path) -> int:
    """Asserts that index and files agree; the number of frames."""
    with Pool.create(path) as pool:
        entries = pool.entries()
        files = {file.stem for file in (path / "frames").glob("*/*")}
        assert files == {entry.sha256 for entry in entries}
        assert list(pool.damaged()) == []
        assert pool.used_bytes == sum(entry.bytes for entry in entries)
    return len(entries)


def test_add__keeps_and_gives_back(tmp_path: Path, frame: NDArray[np.uint8]) -> None:
    embedding = np.linspace(0, 1, 8, dtype=np.float32)
    with Pool.create(tmp_path / "pool") as pool:
        entry = pool.add(frame, Seen("cam", 12.5, "every_n", 2, embedding, 3, 0.75, "abc"))
        assert entry is not None
        assert pool.add(frame, Seen("cam", 13.0, "every_n")) is None  # the same picture again
    with Pool.open(tmp_path / "pool") as pool:
        (found,) = pool.entries()
        assert (found.camera, found.captured_wall_s, found.epoch, found.detections, found.bundle) == ("cam", 12.5, 2, 3, "abc")
        assert found.embedding is not None
        np.testing.assert_allclose(found.embedding, embedding, atol=1e-3)
        assert np.abs(pool.read(found).astype(int) - frame).mean() < 6


def test_add__quota_is_hard_and_evicts_the_oldest(tmp_path: Path) -> None:
    line = Line(5, (96, 96))
    quota = 40_000
    with Pool.create(tmp_path / "pool", quota_bytes=quota) as pool:
        for index in range(40):
            pool.add(line.image(index), Seen("cam", float(index), "test"))
            on_disk = sum(file.stat().st_size for file in (tmp_path / "pool" / "frames").glob("*/*"))
            assert on_disk <= quota
        times = [entry.captured_wall_s for entry in pool.entries()]
    assert times == sorted(times)
    assert times[-1] == 39.0
    assert 0.0 not in times
    assert agree(tmp_path / "pool") == len(times)


def test_add__a_frame_larger_than_the_quota_is_refused(tmp_path: Path, frame: NDArray[np.uint8]) -> None:
    with Pool.create(tmp_path / "pool", quota_bytes=100) as pool, pytest.raises(PoolError, match="raise the quota"):
        pool.add(frame, Seen("cam", 0.0, "test"))


def test_create__one_writer_at_a_time(tmp_path: Path) -> None:
    with Pool.create(tmp_path / "pool"), pytest.raises(PoolError, match="being written by another process"):
        Pool.create(tmp_path / "pool")
    Pool.create(tmp_path / "pool").close()


def test_open__no_pool(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match="edge pool add"):
        Pool.open(tmp_path)


def test_open__damaged_index(tmp_path: Path) -> None:
    (tmp_path / "index.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(PoolError, match=r"index\.sqlite says"):
        Pool.open(tmp_path)


def test_create__unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PoolError, match="cannot be used"):
        Pool.create(tmp_path / "file" / "pool")


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
def test_damaged__told_and_removed(tmp_path: Path, damage: str) -> None:
    fill_pool(tmp_path / "pool", 3)
    victim = next((tmp_path / "pool" / "frames").glob("*/*.jpg"))
    data = victim.read_bytes()
    if damage == "truncate":
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "alter":
        victim.write_bytes(data[:-20] + bytes(18) + data[-2:])
    else:
        victim.unlink()
    with Pool.open(tmp_path / "pool") as pool:
        ((entry, error),) = pool.damaged()
        assert entry.sha256 == victim.stem
        assert "edge pool check" in str(error)


def test_create__removes_what_a_kill_left(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 2)
    folder = tmp_path / "pool" / "frames" / "ab"
    folder.mkdir(exist_ok=True)
    (folder / ("ab" * 32 + ".jpg")).write_bytes(b"complete, but without a row")
    (folder / ("ac" * 32 + ".partial")).write_bytes(b"half")
    assert agree(tmp_path / "pool") == 2


def test_full_disk__leaves_no_trace(tmp_path: Path, frame: NDArray[np.uint8]) -> None:
    """A file size limit makes the real write fail half-way, as a full disk does."""
    program = (
        "import resource, signal, sys\n"
        "from runtime.pool import Pool, Seen\n"
        "from runtime.errors import PoolError\n"
        "from runtime.sources.simulated import Line\n"
        "pool = Pool.create(sys.argv[1])\n"
        "pool.add(Line(1).image(0), Seen('cam', 0.0, 'test'))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    pool.add(Line(1).image(9), Seen('cam', 1.0, 'test'))\n"
        "except PoolError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "pool")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "free some space" in done.stdout
    assert agree(tmp_path / "pool") == 1


_WRITER = (
    "import sys\n"
    "from runtime.pool import Pool, Seen\n"
    "from runtime.sources.simulated import Line\n"
    "pool = Pool.create(sys.argv[1], quota_bytes=300_000)\n"
    "line = Line(int(sys.argv[2]), (96, 96))\n"
    "print('open', flush=True)\n"
    "for index in range(100_000):\n"
    "    pool.add(line.image(index), Seen('cam', float(index), 'test'))\n"
)


def test_kill_9__index_and_files_agree(tmp_path: Path) -> None:
    """Fifty kills of the daemon itself are in benchmarks/kill9.py; these hit the pool at random instants, eviction included."""
    rng = np.random.default_rng(0)
    for attempt in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "pool"), str(attempt)], cwd=ROOT, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        time.sleep(float(rng.uniform(0.05, 0.5)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert agree(tmp_path / "pool") > 0


def test_create__never_removes_foreign_files(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 1)
    own = tmp_path / "pool" / "frames" / "holiday.jpg"
    nested = tmp_path / "pool" / "frames" / "ab" / "photo.jpg"
    nested.parent.mkdir(exist_ok=True)
    for path in (own, nested):
        path.write_bytes(b"mine")
    Pool.create(tmp_path / "pool").close()
    assert own.exists()
    assert nested.exists()
    (tmp_path / "other" / "frames").mkdir(parents=True)
    (tmp_path / "other" / "frames" / "a.jpg").write_bytes(b"mine")
    with pytest.raises(PoolError, match="choose another folder"):
        Pool.create(tmp_path / "other")


def test_add__without_eviction_a_full_pool_refuses(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 3)
    with (
        Pool.create(tmp_path / "pool", 10_000, evict=False) as pool,
        pytest.raises(PoolError, match=r"is full .* raise --quota-mb"),
    ):
        pool.add(Line(7, (96, 96)).image(1), Seen("cam", 0.0, "test"))
    assert agree(tmp_path / "pool") == 3


def test_open__a_pool_where_nobody_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_pool(tmp_path / "pool", 3)
    before = sorted(path.name for path in (tmp_path / "pool").iterdir())
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Pool.open(tmp_path / "pool") as pool:
        assert len(pool.entries()) == 3
        assert sorted(path.name for path in (tmp_path / "pool").iterdir()) == before, "no file of SQLite's own"


def test_open__a_folder_of_pictures_is_what_a_pool_is_filled_with(tmp_path: Path) -> None:
    with pytest.raises(PoolError, match=f"fill one with: edge pool add POOL {tmp_path}$"):
        Pool.open(tmp_path)
    with pytest.raises(PoolError, match=r"fill one with: edge pool add .*nowhere IMAGES$"):
        Pool.open(tmp_path / "nowhere")
