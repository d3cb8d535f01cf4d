"""Two processes that share each batch learn what one learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from converters.checkpoint import load_checkpoint
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simclr", "vicreg"])
def test_pretrain__two_processes_have_the_loss_of_one(pool_dir: Path, tmp_path: Path, method: str) -> None:
    options = [
        "--pool",
        str(pool_dir),
        "--imgsz",
        "64",
        "--batch",
        "8",
        "--epochs",
        "3",
        "--method",
        method,
        "--part",
        "backbone",
    ]
    losses = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "edge.cli"]
        command = [sys.executable, *launch, "pretrain", *options, "--out", str(out)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        losses[processes] = [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text().splitlines()]
        assert load_checkpoint(out / "backbone.pt").lineage["ssl"] == method
        assert done.stdout == f"{out / 'backbone.pt'}\n", "one process tells"
    # Batch norm sees half of the batch in each process, four images here; all else is the same. Without the negatives of the
    # other process SimCLR's loss would begin a quarter lower (ln 7 for ln 15).
    assert losses[2] == pytest.approx(losses[1], rel=0.2)
