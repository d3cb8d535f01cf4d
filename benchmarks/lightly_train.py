"""LightlyTrain's SimCLR beside ours: the same YOLO, frames, batch, size and epochs; images a second, turn by turn.

LightlyTrain (AGPL) lives in an environment of its own; EDGE_LIGHTLY_PYTHON names its interpreter. `rate` measures, each run
a process; what starting costs is taken off by the difference of a longer and a shorter run. `weights` trains what a study's
outside arm starts from: `{set}-{seed}.pt` for every pool of the study. Its settings are LightlyTrain's own but for size, epochs
and batch, which are those of the arm beside it; pictures from 0 to 1, as a YOLO takes them: under its default, ImageNet's mean
and deviation, what it learns does not fit the pictures that fine-tuning shows; and AdamW at our rate: under its default, SGD at
0.3 for 256 images and no clipping, a YOLO's weights grow by an order, and once became no numbers at all.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import ROOT, WORK, write_result
from benchmarks.methods import data_and_pool
from calibration.labels import load_dataset

MODEL, IMGSZ, BATCH = "yolo11n", 224, 64
ROUNDS, SHORT, LONG = 3, 1, 4  # epochs
FRAMES = 256
LR = 1e-3  # of the studies' self-supervision
STUDIES = {"neu_det": (10, 128, 64), "apple": (30, 224, 32), "deeppcb": (8, 256, 32)}  # epochs, side and batch
FOLDER = WORK / "lightly-train"

THEIRS = """
import sys
import lightly_train
images, out, model, imgsz, batch, epochs, seed, precision, lr = sys.argv[1:10]
optimizer = {"optim": "adamw", "optim_args": {"lr": float(lr) * 256 / int(batch)}} if lr else {}  # it scales by batch / 256
if __name__ == "__main__":
    lightly_train.pretrain(
        out=out, data=images, model=f"ultralytics/{model}.yaml", method="simclr", epochs=int(epochs), batch_size=int(batch),
        devices=1, accelerator="cpu", precision=precision, seed=int(seed), overwrite=True,
        transform_args={"image_size": (int(imgsz), int(imgsz)), "normalize": {"mean": (0.0,) * 3, "std": (1.0,) * 3}},
        **optimizer,
    )
"""


def theirs(
    images: Path, out: Path, imgsz: int, batch: int, epochs: int, precision: str, seed: int = 0, lr: float | None = None
) -> float:
    """Wall time in seconds of a run of LightlyTrain, which chooses its number of loader processes, and its optimizer unless
    AdamW's rate is given.
    """
    python = os.environ.get("EDGE_LIGHTLY_PYTHON")
    if not python:
        raise SystemExit("EDGE_LIGHTLY_PYTHON names no interpreter that has lightly-train and ultralytics")
    arguments = [images, out, MODEL, imgsz, batch, epochs, seed, precision, lr or ""]
    return timed([python, "-c", THEIRS, *map(str, arguments)], {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1"})


def ours(pool: Path, out: Path, imgsz: int, batch: int, epochs: int, precision: str) -> float:
    """Wall time in seconds of a run of `edge pretrain`."""
    shutil.rmtree(out, ignore_errors=True)
    options = ["--imgsz", imgsz, "--batch", batch, "--epochs", epochs, "--method", "simclr", "--part", "backbone"]
    options += ["--precision", precision]
    words = ["pretrain", "--pool", pool, "--out", out, "--model", MODEL, *options]
    return timed([sys.executable, "-m", "edge.cli", *map(str, words)], {})


def timed(command: list[str], environ: dict[str, str]) -> float:
    """Wall time of a process that must succeed."""
    began_s = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return time.monotonic() - began_s


def rate(precision: str) -> None:
    """Images a second of both, in turns, in the same arithmetic."""
    from runtime.pool import Pool
    from runtime.pool_import import add_image_file

    items = load_dataset(data_and_pool()[0]).train[:FRAMES]
    images, pool = FOLDER / "images", FOLDER / "pool"
    if not pool.exists():
        images.mkdir(parents=True, exist_ok=True)
        with Pool.create(pool) as opened:
            for number, item in enumerate(items):
                shutil.copy(item.path, images / item.path.name)
                add_image_file(opened, item.path, "neu_det", float(number))
    found: dict[str, list[float]] = {"edgeloop": [], "lightly-train": []}
    seconds: dict[str, list[float]] = {name: [] for name in found}

    def timed_run(name: str, epochs: int) -> float:
        if name == "edgeloop":
            return ours(pool, FOLDER / "ours", IMGSZ, BATCH, epochs, precision)
        return theirs(images, FOLDER / "theirs", IMGSZ, BATCH, epochs, precision)

    for name in found:  # what is read from the disk once is in memory from here on
        timed_run(name, SHORT)
    for _ in range(ROUNDS):
        for name in found:
            short, long = (timed_run(name, epochs) for epochs in (SHORT, LONG))
            found[name].append(FRAMES // BATCH * BATCH * (LONG - SHORT) / (long - short))
            seconds[name].append(short)
            sys.stderr.write(f"{name}: {found[name][-1]:.2f} images/s, {short:.1f} s for the first epoch and the start\n")
    median = {name: statistics.median(values) for name, values in found.items()}
    write_result(
        "lightly_train",
        {"model": MODEL, "imgsz": IMGSZ, "batch": BATCH, "frames": FRAMES, "method": "simclr", "precision": precision,
         "threads": len(os.sched_getaffinity(0)),
         "images_per_s": {name: [round(value, 2) for value in values] for name, values in found.items()},
         "first_epoch_and_start_s": {name: [round(value, 1) for value in values] for name, values in seconds.items()},
         "ratio": round(median["edgeloop"] / median["lightly-train"], 3)},
    )  # fmt: skip


def weights(study: Path, precision: str) -> None:
    """A checkpoint for each set and seed of a study of `STUDIES`."""
    epochs, imgsz, batch = STUDIES[study.name]
    for pool in sorted(study.glob("*/seed*/_pool")):
        name, seed = pool.parent.parent.name, int(pool.parent.name.removeprefix("seed"))
        out = study / "lightly" / f"{name}-{seed}"
        result = out.with_name(f"{out.name}.pt")
        if not result.is_file():
            theirs(pool / "frames", out, imgsz, batch, epochs, precision, seed, LR)
            shutil.copy(out / "exported_models" / "exported_last.pt", result)
            shutil.rmtree(out)
        sys.stderr.write(f"{result}\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=("rate", "weights"))
    parser.add_argument("--study", type=Path)
    parser.add_argument("--precision", default="32-true")
    arguments = parser.parse_args()
    if arguments.job == "rate":
        rate(arguments.precision)
    else:
        weights(arguments.study, arguments.precision)


if __name__ == "__main__":
    main()
