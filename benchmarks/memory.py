"""What `edge pretrain` needs of memory and time for the same batch: as it is, with activation checkpointing, in chunks, with both.

Each run is a process; its peak is what the kernel counted, less that of a run of two small images (libraries and weights).
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys

from benchmarks.common import DATA, ROOT, WORK, write_result
from edge.run_log import LOG
from runtime.images import list_images
from runtime.pool import Pool
from runtime.pool_import import add_image_file

MODEL, METHOD, PART = "yolo11n", "simclr", "backbone"
IMGSZ, BATCH, CHUNK = 320, 32, 8
FRAMES, EPOCHS, ROUNDS = 64, 2, 3
OPTIONS: dict[str, list[str]] = {
    "whole batch": [],
    "activation checkpointing": ["--activation-checkpointing"],
    f"chunks of {CHUNK}": ["--chunk", str(CHUNK)],
    f"chunks of {CHUNK}, activation checkpointing": ["--chunk", str(CHUNK), "--activation-checkpointing"],
}
FOLDER = WORK / "memory"


def run(options: list[str], imgsz: int = IMGSZ, batch: int = BATCH) -> tuple[float, float]:
    """Peak in MB of a process, and images a second of its last epoch."""
    out = FOLDER / "run"
    shutil.rmtree(out, ignore_errors=True)
    words = [
        "pretrain",
        "--pool",
        str(FOLDER / "pool"),
        "--out",
        str(out),
        "--model",
        MODEL,
        "--method",
        METHOD,
        "--part",
        PART,
    ]
    words += ["--imgsz", str(imgsz), "--batch", str(batch), "--epochs", str(EPOCHS), *options]
    with (FOLDER / "stderr.txt").open("w") as errors:
        child = subprocess.Popen([sys.executable, "-m", "edge.cli", *words], cwd=ROOT, stdout=errors, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)  # the kernel told us, not subprocess
    if child.returncode:
        raise SystemExit((FOLDER / "stderr.txt").read_text())
    last = json.loads((out / LOG).read_text(encoding="utf-8").splitlines()[-1])
    return usage.ru_maxrss * 1024 / 1e6, last["images_per_s"]


def fill() -> None:
    """The first frames of neu_det."""
    if (FOLDER / "pool").exists():
        return
    with Pool.create(FOLDER / "pool") as pool:
        for number, path in enumerate(list_images(DATA / "neu_det" / "images")[:FRAMES]):
            add_image_file(pool, path, "neu_det", float(number))


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    fill()
    start_mb, _ = run([], 32, 2)
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in OPTIONS}
    for _ in range(ROUNDS):
        for name, options in OPTIONS.items():
            rows[name].append(run(options))
            sys.stderr.write(f"{name}: {rows[name][-1][0]:.0f} MB, {rows[name][-1][1]:.1f} images/s\n")
    write_result(
        "memory",
        {"model": MODEL, "method": METHOD, "part": PART, "imgsz": IMGSZ, "batch": BATCH, "frames": FRAMES, "start_mb": round(start_mb),
         "runs": {name: [{"peak_mb": round(mb), "images_per_s": rate} for mb, rate in each] for name, each in rows.items()},
         "median": {
             name: {"over_start_mb": round(statistics.median(mb for mb, _ in each) - start_mb),
                    "images_per_s": statistics.median(rate for _, rate in each)}
             for name, each in rows.items()
         }},
    )  # fmt: skip


if __name__ == "__main__":
    main()
