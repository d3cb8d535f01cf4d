"""The whole of `edge-convert` on COCO weights, as a user starts it: time, memory, and what each shipped file loses.

Calibrated on coco_train2017 (126 pictures), gated on the 128 labelled ones of coco_val2017, 640 px. The latencies come
from the gate itself: all files and engines in one run, in blocks turn by turn.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

import yaml

from benchmarks.common import DATA, ROOT, WORK, coco_pool, write_result

RUNS = (("yolo11n", "cpu"), ("yolov8n", "cpu"), ("yolo11n", "tensorrt"), ("yolov8n", "tensorrt"))
VAL = DATA / "coco_val2017"


def convert(model: str, target: str) -> dict[str, Any]:
    """One conversion in a process of its own; its JSON."""
    out, data = WORK / f"convert-{model}-{target}", WORK / "coco_val.yaml"
    shutil.rmtree(out, ignore_errors=True)
    names = yaml.safe_load((VAL / "data.yaml").read_text(encoding="utf-8"))["names"]
    data.write_text(yaml.safe_dump({"path": str(VAL.resolve()), "val": "images", "names": names}), encoding="utf-8")
    command = [
        sys.executable, "-m", "converters.cli", str(DATA / "weights" / f"{model}_coco_dequant_state_fp16.pt"),
        "--pool", str(coco_pool()), "--data", str(data), "--target", target, "--imgsz", "640", "--out", str(out), "--json",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        "seconds": result["seconds"],
        "peak_mb": result["peak_mb"],
        "preferred": result["preferred"],
        "times_fp32": speedup(result["parity"]),
        "measurements": result["parity"],
        "int8": report["int8"],
        "files": result["files"],
    }


def speedup(rows: list[dict[str, Any]]) -> float:
    """p50 of the fastest FP32 engine over that of the fastest sound INT8 one."""
    sound = [row for row in rows if not row["refused"] and row["form"] in ("any", "cpu")]
    fastest = {
        kind: min(row["latency_p50_ms"] for row in sound if row["precision"] == kind)
        for kind in {row["precision"] for row in sound}
    }
    return round(fastest["fp32"] / fastest["int8"], 2) if "int8" in fastest else 0.0


def main() -> None:
    found: dict[str, Any] = {}
    for model, target in RUNS:
        found[f"{model}, {target}"] = convert(model, target)
        write_result("convert_int8", found)  # after each, so that a cut run keeps what it has


if __name__ == "__main__":
    main()
