"""Two processes that share each batch learn what one learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from converters.checkpoint import load_checkpoint
from edge.errors import TrainingError
from edge.processes import lost_told
from tests.conftest import ROOT


def under_torchrun(processes: int, *words: object) -> str:
    """What a module printed."""
    done = launched(processes, *words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def launched(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    """A module in several processes, to its end."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    return subprocess.run(
        [*launch, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "vicreg"])
def test_pretrain__two_processes_have_the_loss_of_one(pool_dir: Path, tmp_path: Path, method: str) -> None:
    options = ["--pool", pool_dir, "--imgsz", "64", "--batch", "8", "--epochs", "3", "--method", method, "--part", "backbone"]
    losses = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        told = under_torchrun(processes, "edge.cli", "pretrain", *options, "--out", out)
        losses[processes] = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
        assert load_checkpoint(out / "backbone.pt").lineage["ssl"] == method
        assert told == f"{out / 'backbone.pt'}\n", "one process tells"
    # Batch norm sees half of the batch in each process, four images here; all else is the same. Without the negatives of the
    # other process SimCLR's loss would begin a quarter lower (ln 7 for ln 15).
    assert losses[2] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.slow
def test_methods__two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    """To the last digits, where batch norm is left out of it: nothing is summed twice, nothing of the other process is missing."""
    names = ("simclr", "vicreg", "moco")
    for processes in (1, 2):
        under_torchrun(processes, "tests.edge.gradients", tmp_path / f"{processes}.pt", *names)
    alone, together = (torch.load(tmp_path / f"{processes}.pt", weights_only=True) for processes in (1, 2))
    for name in names:
        assert alone[name].keys() == together[name].keys()
        assert len(alone[name]) > 100
        for key, gradient in alone[name].items():
            assert float((together[name][key] - gradient).norm()) <= 1e-9 * float(gradient.norm()), (name, key)


@pytest.mark.slow
def test_pretrain__of_two_processes_none_tells_a_mistake_in_a_traceback(tmp_path: Path) -> None:
    words = ["edge.cli", "pretrain", "--pool", tmp_path / "none", "--method", "simclr", "--out", tmp_path / "out"]
    done = launched(2, *words)
    assert done.returncode
    assert any(line.startswith("edge: ") and str(tmp_path / "none") in line for line in done.stderr.splitlines()), done.stderr
    assert "edge/pretrain.py" not in done.stderr, done.stderr[-3000:]
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "last.pt").touch()
    began_s = time.monotonic()
    done = launched(2, *words)
    assert done.returncode
    assert "holds a run already" in done.stderr
    assert time.monotonic() - began_s < 60, "nobody waits for a process that was refused"


def test_lost_told__only_a_process_that_another_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = "[transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"
    with pytest.raises(RuntimeError, match="closed by peer"), lost_told():
        raise RuntimeError(closed)  # alone nobody can leave
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(TrainingError, match=r"another process .*closed by peer.*; start all of them again, with --resume"),
        lost_told(),
    ):
        raise RuntimeError(closed)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), lost_told():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
