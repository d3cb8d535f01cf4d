from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edge.collapse import refuse_collapse, spread_of
from edge.errors import TrainingError
from edge.loader_processes import killed_told
from edge.methods.views import TwoViews, ViewSpec
from edge.snapshot import Snapshot
from edge.view_loader import LoaderSpec, ViewLoader
from runtime.pool import Pool, Seen
from tests.conftest import ROOT, fill_pool


@pytest.fixture
def frames(tmp_path: Path) -> Snapshot:
    fill_pool(tmp_path / "pool", 30)
    return Snapshot.take(tmp_path / "pool", tmp_path / "run", None, 2)


def loader(frames: Snapshot, **changes: int) -> ViewLoader:
    return ViewLoader(frames, TwoViews(ViewSpec(64)), LoaderSpec(**{"batch": 7, "seed": 3, **changes}))


def same(first: list[tuple[torch.Tensor, ...]], second: list[tuple[torch.Tensor, ...]]) -> bool:
    pairs = [(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def test_loader__an_epoch_is_the_same_with_other_processes_and_from_the_middle(frames: Snapshot) -> None:
    whole = list(loader(frames).epoch(2))
    assert [view.shape[0] for views in whole for view in views[:1]] == [7, 7, 7, 7]
    assert whole[0][0].is_contiguous(memory_format=torch.channels_last)
    assert same(whole, list(loader(frames, workers=2).epoch(2)))
    assert same(whole[2:], list(loader(frames).epoch(2, first_step=2)))
    assert not same(whole, list(loader(frames).epoch(3)))
    assert not same(whole, list(loader(frames, seed=4).epoch(2)))


def test_loader__processes_share_a_batch(frames: Snapshot) -> None:
    whole = list(loader(frames, batch=8).epoch(0))
    shares = [list(loader(frames, batch=8, rank=rank, world=2).epoch(0)) for rank in range(2)]
    for views, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(views[0][0::2], first[0])
        assert torch.equal(views[0][1::2], second[0])


def test_loader__a_damaged_frame_is_left_out_and_named_and_many_end_the_run(frames: Snapshot, tmp_path: Path) -> None:
    files = sorted((tmp_path / "run" / "frames").iterdir())
    _damage(files[4])
    one = loader(frames)
    assert sum(len(views[0]) for views in one.epoch(0)) in (27, 28), "unless it is among those that fill no batch"
    list(one.epoch(1))
    list(one.epoch(2))
    assert list(one.damaged) == [frames.name(4)]
    for path in files[5:7]:
        _damage(path)
    with pytest.raises(TrainingError, match=r"of 30 frames are damaged, first .*edge pool check POOL --repair"):
        for number in range(3):
            list(loader(frames).epoch(number))
            list(one.epoch(number))


@pytest.mark.parametrize("workers", [0, 1])
def test_loader__a_batch_that_is_all_damaged_takes_the_next_whole_frame(tmp_path: Path, workers: int) -> None:
    fill_pool(tmp_path / "pool", 48)
    frames = Snapshot.take(tmp_path / "pool", tmp_path / "run", None, 2)
    order = np.random.default_rng((3, 1)).permutation(48)  # of the seed and the epoch below
    for position in order[4:6]:
        _damage(frames.path(int(position)))
    made = loader(frames, batch=2, workers=workers)
    whole = list(made.epoch(1))
    assert len(whole) == 24
    assert torch.equal(whole[2][0][0], whole[3][0][0])
    assert list(made.damaged) == [frames.name(int(position)) for position in order[4:6]]
    assert same(whole[2:], list(loader(frames, batch=2).epoch(1, first_step=2)))
    second = list(loader(frames, batch=4, rank=1, world=4).epoch(1))[1]
    assert second[0].shape[0] == 1, "a share of one frame that is damaged is filled as well"


def test_loader__a_frame_that_is_no_image_or_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 44)
    with Pool.create(tmp_path / "pool") as pool:
        pool.add_jpeg(b"no image", (8, 8), Seen("line", 2000.0, "test"))
    frames = Snapshot.take(tmp_path / "pool", tmp_path / "run", None, 2)
    frames.path(3).unlink()
    made = loader(frames, batch=45)
    assert len(next(made.epoch(0))[0]) == 45
    assert set(made.damaged) == {frames.name(3), frames.name(44)}


class Failing:
    """Views whose maker does something to its own process."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        if self.what == "refused":
            raise TrainingError("a sentence; do this")
        if self.what == "mistaken":
            raise RuntimeError("a mistake of ours")
        if self.what in ("killed", "ended", "we first", "we last"):
            time.sleep(0.3)  # PyTorch looks after its processes once all have begun; earlier it takes 5 s to notice
            if self.what == "we first":
                os.kill(os.getppid(), signal.SIGTERM)
            if self.what == "we last":
                subprocess.Popen(["/bin/sh", "-c", f"sleep 0.2; kill -TERM {os.getppid()}"])
            os.kill(os.getpid(), signal.SIGKILL if self.what == "killed" else signal.SIGTERM)
        if self.what == "memory":  # files of shared memory have a size like others
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return (torch.zeros(1000),)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("refused", r"^a sentence; do this$"),
        ("killed", r"^a process that makes views was killed \(DataLoader worker.*\); take fewer --workers .*--shm-size\)$"),
        (
            "ended",
            r"^a process that makes views was killed \(DataLoader worker.*\); take fewer --workers",
        ),  # earlyoom asks like that
        ("memory", r"^no shared memory for a batch \(.*\); take fewer --workers .*--shm-size\)$"),
    ],
)
def test_loader__what_ends_a_process_is_one_sentence(frames: Snapshot, what: str, told: str) -> None:
    with pytest.raises(TrainingError, match=told):
        list(ViewLoader(frames, Failing(what), LoaderSpec(7, 3, workers=2)).epoch(0))


@pytest.mark.parametrize("what", ["we first", "we last"])
def test_loader__processes_that_are_asked_to_end_with_us_end_us(frames: Snapshot, what: str) -> None:
    list(ViewLoader(frames, Failing("whole"), LoaderSpec(7, 3, workers=1)).epoch(0))  # PyTorch sets its handler once
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)), signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(SystemExit) as ended:
            list(ViewLoader(frames, Failing(what), LoaderSpec(7, 3, workers=1)).epoch(0))
        code = ended.value.code
        del ended
        gc.collect()  # its traceback held the loader
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGCHLD), before, strict=True):
            signal.signal(number, handler)
    assert code == 143, "what SIGTERM to this process gives"


@pytest.mark.parametrize(("asked", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_loader__a_signal_that_comes_while_a_process_is_forked_is_not_lost(frames: Snapshot, asked: str, code: int) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from edge.snapshot import Snapshot
from edge.view_loader import LoaderSpec, ViewLoader
from tests.edge.test_view_loader import Later

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
os.register_at_fork(after_in_parent=lambda: (os.kill(os.getpid(), signal.{asked}), sum(range(1000))))
try:
    list(ViewLoader(Snapshot(Path({str(frames.path(0).parent.parent)!r})), Later(""), LoaderSpec(7, 3, workers=1)).epoch(0))
except KeyboardInterrupt:
    sys.exit(130)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (code, "")


def test_loader__a_mistake_in_a_process_keeps_its_traceback(frames: Snapshot) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*a mistake of ours"):
        list(ViewLoader(frames, Failing("mistaken"), LoaderSpec(7, 3, workers=1)).epoch(0))


class Later(Failing):
    """Fails from the second batch on."""

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        self.calls: int = getattr(self, "calls", 0) + 1
        if self.calls > 7:
            time.sleep(1.0)  # the first batch is being learnt from
            return super().__call__(image, rng)
        return (torch.zeros(3),)


def test_loader__a_process_killed_while_the_training_computes_is_a_sentence_too(frames: Snapshot) -> None:
    made = ViewLoader(frames, Later("killed"), LoaderSpec(7, 3, workers=1)).epoch(0)
    next(made)
    with pytest.raises(TrainingError, match="was killed"), killed_told():
        time.sleep(20)
    del made


def _damage(path: Path) -> None:
    """Cuts a frame off; the pool's own file, which it is a link to, stays whole."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])


def test_collapse__one_point_is_refused_and_random_features_are_not() -> None:
    rng = np.random.default_rng(0)
    spread = spread_of(torch.from_numpy(rng.normal(size=(64, 32))))
    assert 0.8 < spread.deviation < 1.2
    assert 20 < spread.effective_rank <= 32
    refuse_collapse(spread, 64, "simclr")
    point = spread_of(torch.ones(64, 32) + 1e-4 * torch.from_numpy(rng.normal(size=(64, 32))))
    with pytest.raises(TrainingError, match=r"collapsed.*--method vicreg"):
        refuse_collapse(point, 64, "simclr")
    line = spread_of(torch.from_numpy(rng.normal(size=(64, 1)) * rng.normal(size=(1, 32))))
    with pytest.raises(TrainingError, match="collapsed"):
        refuse_collapse(line, 64, "vicreg")
    refuse_collapse(point, 2, "moco")  # too few to tell
