"""kill -9 of the daemon while it collects, fifty times at random instants: does the pool open, do index and files agree?"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml

from benchmarks.common import ROOT, SEED, WORK, coco_bundle, write_result
from runtime.errors import PoolError
from runtime.pool import Pool

KILLS = 50


def agrees(pool_path: Path) -> tuple[bool, int, int]:
    """Whether index and files agree, the number of frames, and what the opening had to clean up."""
    before = sum(1 for _ in (pool_path / "frames").glob("*/*"))
    with Pool.create(pool_path) as pool:
        rows = {entry.sha256 for entry in pool.entries()}
        files = {path.stem for path in (pool_path / "frames").glob("*/*")}
        return rows == files and not list(pool.damaged()), len(rows), before - len(files)


def newest(pool_path: Path) -> float:
    """Capture time of the latest frame; 0 for none."""
    if not (pool_path / "index.sqlite").exists():
        return 0.0
    try:
        with Pool.open(pool_path) as pool:
            return max((entry.captured_wall_s for entry in pool.entries()), default=0.0)
    except PoolError:  # its table is being made
        return 0.0


def main() -> None:
    folder = WORK / "kill9"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {
        "model": {"bundle": str(coco_bundle().path)},
        "cameras": {"line": {"source": {"kind": "simulated", "size_wh": [320, 320]}, "fps": "max"}},
        "collect": {"pool": str(folder / "pool"), "every_n": 1, "quota_mb": 3.0},
    }
    (folder / "edge.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    rng = np.random.default_rng(SEED)
    results = []
    for _ in range(KILLS):
        command = [sys.executable, "-m", "edge.cli", "run", "--config", str(folder / "edge.yaml")]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        before = newest(folder / "pool")
        while newest(folder / "pool") == before:  # it has begun to collect
            time.sleep(0.01)
        time.sleep(float(rng.uniform(0.0, 1.5)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        results.append(agrees(folder / "pool"))
    figures = {
        "kills": KILLS,
        "pool_opened_and_agreed": sum(ok for ok, _, _ in results),
        "frames_after_each": [frames for _, frames, _ in results],
        "left_over_files_cleaned": sum(left for _, _, left in results),
    }
    write_result("kill9", figures)


if __name__ == "__main__":
    main()
