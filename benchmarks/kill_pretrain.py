"""`edge pretrain` killed with -9 at random moments and resumed, twenty times, against an unbroken run: are the weights the same?"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.common import ROOT, WORK, write_result
from converters.checkpoint import load_checkpoint
from edge.run_folder import LAST
from runtime.pool import Pool, Seen
from runtime.sources.simulated import Line

KILLS, EPOCHS, FRAMES = 20, 60, 64
FOLDER = WORK / "kill-pretrain"


def command(out: Path, method: str, *, resume: bool) -> list[str]:
    options = ["--imgsz", "64", "--batch", "8", "--epochs", str(EPOCHS), "--method", method, "--part", "neck"]
    start = [sys.executable, "-m", "edge.cli", "pretrain", "--pool", str(FOLDER / "pool"), "--out", str(out), *options]
    return [*start, "--resume"] if resume else start


def killed_run(method: str, rng: random.Random) -> tuple[Path, int]:
    """Starts, kills and resumes until it is through; the result and how often it was killed."""
    out = FOLDER / f"{method}-killed"
    kills = 0
    while not (out / "neck.pt").exists():
        resume = (out / LAST).is_file()
        if not resume:
            shutil.rmtree(out, ignore_errors=True)
        before = (out / LAST).stat().st_mtime_ns if resume else 0
        process = subprocess.Popen(
            command(out, method, resume=resume), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        while process.poll() is None and not ((out / LAST).is_file() and (out / LAST).stat().st_mtime_ns != before):
            time.sleep(0.01)  # it has begun to save: from here on it may be killed at any moment
        if kills < KILLS:
            time.sleep(rng.uniform(0, 2.0))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
                sys.stderr.write(f"{method}: killed {kills} times\n")
        _, told = process.communicate()
        if process.returncode not in (0, -signal.SIGKILL):
            raise RuntimeError(told.decode()[-2000:])
    return out / "neck.pt", kills


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("methods", nargs="*", default=["hybrid"])
    shutil.rmtree(FOLDER, ignore_errors=True)
    line = Line(5, (96, 96))
    with Pool.create(FOLDER / "pool") as pool:
        for index in range(FRAMES):
            pool.add(line.image(index * 5), Seen("line", 1000.0 + index, "test"))
    rng = random.Random(0)
    found = {}
    for method in parser.parse_args().methods:
        whole = FOLDER / f"{method}-whole"
        subprocess.run(command(whole, method, resume=False), cwd=ROOT, check=True, capture_output=True)
        killed, kills = killed_run(method, rng)
        first, second = load_checkpoint(whole / "neck.pt").state, load_checkpoint(killed).state
        same = set(first) == set(second) and all(torch.equal(first[key], second[key]) for key in first)
        found[method] = {"kills": kills, "same_weights": same, "tensors": len(first)}
    write_result("kill_pretrain", {"epochs": EPOCHS, "frames": FRAMES, "methods": found})


if __name__ == "__main__":
    main()
