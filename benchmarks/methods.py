"""Every self-supervised method on neu_det from scratch: time, loss, rank, and what kNN and a linear probe make of the features.

The pool is all images that are not held out, without labels. A method that is in the result file is not run again, one that
was cut goes on; `--epochs` is the budget of those that are named.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any, get_args

from benchmarks.common import DATA, RESULTS, WORK, write_result
from calibration.labels import load_dataset, split_dataset
from edge.doctor import machine_facts
from edge.methods import METHODS
from edge.pretrain import RESULT, pretrain
from edge.pretrain_request import PretrainRequest, usual_of
from edge.probe import ProbeRequest, probe
from edge.processes import Precision
from edge.run_folder import LAST
from edge.run_log import LOG
from edge.yolo import Part
from runtime.pool import Pool
from runtime.pool_import import add_image_file

MODEL, IMGSZ, BATCH = "yolo11n", 224, 64
PART: Part = "neck"
FOLDER = WORK / "methods-neu_det"
TEACHER = DATA / "weights" / "yolov8n_coco_dequant_state_fp16.pt"


def data_and_pool() -> tuple[Path, Path]:
    """The split and the pool. Made once."""
    data, pool = FOLDER / "split" / "data.yaml", FOLDER / "pool"
    if not data.is_file():
        split_dataset(DATA / "neu_det", data.parent, "^(.*)$", 0, 0.2, 0)
    if not pool.exists():
        with Pool.create(pool) as opened:
            for number, item in enumerate(load_dataset(data).train):
                add_image_file(opened, item.path, "neu_det", float(number))
    return data, pool


def measure(method: str, epochs: int, precision: Precision, data: Path, pool: Path) -> dict[str, Any]:
    """One method from scratch."""
    out = FOLDER / f"{method}-{epochs}"
    part: Part = PART if PART in METHODS[method].parts else "backbone"
    request = PretrainRequest(
        pool, out, model=MODEL, imgsz=IMGSZ, batch=BATCH, epochs=epochs, method=method, part=part, resume=(out / LAST).is_file(),
        teacher=TEACHER if method == "distill" else None, precision=precision, lr=usual_of(method, None)[0],
    )  # fmt: skip
    start = time.monotonic()
    pretrain(request)
    seconds = time.monotonic() - start
    log = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    rows = probe(ProbeRequest(data, (out / RESULT[part],), MODEL, part, 128))
    fresh, given = rows["fresh weights"], rows["given weights"]
    return {
        "part": part, "lr": request.lr, "cpu": machine_facts()["cpu"],
        "seconds": round(sum(row["seconds"] for row in log), 1), "wall_s_of_the_last_start": round(seconds, 1),
        "images_per_s": log[-1]["images_per_s"], "loss": [round(row["loss"], 4) for row in log],
        "effective_rank": [row["effective_rank"] for row in log],
        "knn": round(given.knn, 4), "linear": round(given.linear, 4),
        "linear_interval": [round(v, 4) for v in given.linear_interval], "boxes_learnt_asked": [given.train, given.val],
        **over_fresh(given.knn, given.linear, fresh.knn, fresh.linear),
    }  # fmt: skip


def over_fresh(knn: float, linear: float, knn_fresh: float, linear_fresh: float) -> dict[str, float]:
    """A row's comparison with fresh weights, which are the same for all methods that train the same part."""
    return {
        "knn_fresh": round(knn_fresh, 4), "knn_gain": round(knn - knn_fresh, 4),
        "linear_fresh": round(linear_fresh, 4), "linear_gain": round(linear - linear_fresh, 4),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--precision", choices=get_args(Precision), default="bf16-mixed")
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    arguments = parser.parse_args()
    data, pool = data_and_pool()
    path = RESULTS / "methods.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = known.get("methods", {}) if known.get("precision") == arguments.precision else {}
    for run in found.values():
        run.setdefault("epochs", known.get("epochs"))  # files from before rows had budgets, parts and machines of their own
        run.setdefault("part", PART)
        run.setdefault("cpu", known["machine"]["cpu"])
    for method in arguments.methods:
        if method in found and found[method]["epochs"] == arguments.epochs:
            continue
        sys.stderr.write(f"{method}\n")
        measured = measure(method, arguments.epochs, arguments.precision, data, pool)
        found[method] = {"epochs": arguments.epochs, **measured}
        for row in found.values():  # those measured before batch norms of fresh weights saw pictures
            if row["part"] == measured["part"]:
                row |= over_fresh(row["knn"], row["linear"], measured["knn_fresh"], measured["linear_fresh"])
        write_result(
            "methods",
            {"set": "neu_det", "model": MODEL, "imgsz": IMGSZ, "batch": BATCH, "precision": arguments.precision,
             "start": "scratch", "methods": found},
        )  # fmt: skip


if __name__ == "__main__":
    main()
