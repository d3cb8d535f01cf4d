"""Two processes that share each batch learn what one learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from converters.checkpoint import load_checkpoint
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
def test_pretrain__of_two_processes_each_tells_a_mistake_in_a_sentence(tmp_path: Path) -> None:
    words = ["edge.cli", "pretrain", "--pool", tmp_path / "none", "--method", "simclr", "--out", tmp_path / "out"]
    done = launched(2, *words)
    assert done.returncode
    told = [line for line in done.stderr.splitlines() if line.startswith("edge: ")]
    assert any("another process of this run has ended" in line for line in told), done.stderr[-3000:]
    assert any(str(tmp_path / "none") in line for line in told)
    assert "edge/pretrain.py" not in done.stderr
    assert not (tmp_path / "out").exists()
