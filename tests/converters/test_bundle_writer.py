from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from converters.bundle_writer import staging_folder
from tests.conftest import ROOT

HOLD = "import sys, time\nfrom pathlib import Path\nfrom converters.bundle_writer import staging_folder\n"
HOLD += "with staging_folder(Path(sys.argv[1])) as folder:\n    (folder / 'model.onnx').write_bytes(b'x')\n"
HOLD += "    print(folder, flush=True)\n    time.sleep(60)"


def conversion(beside: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that is staging a bundle, and its folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(beside)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("name", [".cache.partial", ".b.abc.partial", ".edgeloop-notes", ".edgeloop-abc.partial"])
def test_staging_folder__folders_that_are_not_ours_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name / "bundle").mkdir(parents=True)
    (tmp_path / name / "bundle" / "precious").write_bytes(b"x")
    with staging_folder(tmp_path / "b"):
        pass
    assert (tmp_path / name / "bundle" / "precious").exists()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_staging_folder__a_link_is_not_followed(tmp_path: Path) -> None:
    process, folder = conversion(tmp_path / "elsewhere" / "b")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / ".edgeloop-link").symlink_to(folder.parent)
    with staging_folder(tmp_path / "here" / "b"):
        pass
    assert (folder / "model.onnx").exists()


def test_staging_folder__the_next_conversion_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    process, left = conversion(tmp_path / "one")
    with staging_folder(tmp_path / "two") as running:
        assert (left / "model.onnx").exists()  # it is under way
        process.send_signal(signal.SIGKILL)
        process.communicate()
        with staging_folder(tmp_path / "three"):
            assert not left.parent.exists()
            assert running.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_staging_folder__killed_before_its_marker_or_its_lock_file_went(tmp_path: Path) -> None:
    (tmp_path / ".edgeloop-abcdef").mkdir()
    with staging_folder(tmp_path / "one"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_staging_folder__many_at_once_do_not_sweep_each_other(tmp_path: Path) -> None:
    def convert(number: int) -> None:
        for _ in range(60):
            with staging_folder(tmp_path / f"b{number}") as folder:
                (folder / "model.onnx").write_bytes(b"x")
                time.sleep(0.0005)  # in which others sweep
                assert (folder / "model.onnx").exists()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(convert, range(8)))
    assert list(tmp_path.iterdir()) == []
