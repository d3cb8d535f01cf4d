"""The whole pipeline against the bare engine, and each step outside the engine, on a 1080p file.

Bare engine, one camera and four cameras take turns in one run, each in a process of its own with the same graph, engine and
threads; the daemon decodes, letterboxes, parses and writes JSONL meanwhile. The bare engine runs one frame at a time on all
threads, as who calls it in a loop has it, and as many at a time as there are threads, as the daemon does.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

import cv2
import numpy as np

from benchmarks.common import DATA, WORK, coco_bundle, edge_run, write_result
from benchmarks.daemon import bare_rate
from runtime.bundle import Bundle
from runtime.metrics import percentiles
from runtime.postprocess import Outputs, Thresholds, detections_from_outputs
from runtime.preprocess import Preprocess

ROUNDS = 4
SECONDS = 6.0  # short ones in turn, since the machine itself speeds up and slows down within minutes
STEPS = 500
VIDEO = WORK / "vtest-1080p.mp4"


def make_video() -> None:
    """vtest.avi enlarged to 1080p, H.264 as cameras send it (a key frame every two seconds)."""
    if not VIDEO.exists():
        VIDEO.parent.mkdir(parents=True, exist_ok=True)
        encode = ["-c:v", "libx264", "-preset", "fast", "-crf", "23", "-g", "50", "-r", "25", "-vf", "scale=1920:1080"]
        source = str(DATA / "videos" / "vtest.avi")
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", source, *encode, "-an", str(VIDEO)], check=True)


def pipeline_rate(bundle: Bundle, engine: str, precision: str, threads: int, cameras: int) -> float:
    """Frames per second of `edge run` over so many cameras that all show the 1080p file as fast as they are served."""
    folder = WORK / f"pipeline-{cameras}"
    sources = {f"cam{index}": {"source": {"kind": "video", "uri": str(VIDEO)}, "fps": "max"} for index in range(cameras)}
    config = {
        "model": {"bundle": str(bundle.path), "engine": engine, "precision": precision, "threads": threads},
        "cameras": sources,
        "sinks": [{"kind": "jsonl", "path": str(folder / "results.jsonl")}],
    }
    (folder / "results.jsonl").unlink(missing_ok=True)
    return float(edge_run(folder, config, seconds=SECONDS)["frames_per_s"])


def steps() -> dict[str, Any]:
    """Milliseconds of letterbox (1080p to 640) and of postprocessing 100 boxes."""
    reader = cv2.VideoCapture(str(VIDEO))
    image = np.asarray(reader.read()[1], np.uint8)
    reader.release()
    spec = Preprocess((640, 640))
    canvas = spec.buffer(4)
    letterbox = spec.letterbox(image, canvas[0])
    outputs = hundred_boxes()
    times: dict[str, list[float]] = {"letterbox": [], "postprocess": []}
    for index in range(STEPS):
        start = time.perf_counter()
        spec.letterbox(image, canvas[index % 4])
        between = time.perf_counter()
        found = detections_from_outputs(outputs, 0, letterbox, Thresholds(0.25, 0.7))
        end = time.perf_counter()
        times["letterbox"].append(between - start)
        times["postprocess"].append(end - between)
    return {"boxes_kept": len(found), **{name: percentiles(values).as_dict() for name, values in times.items()}}


def hundred_boxes() -> Outputs:
    """100 boxes over the threshold, 60 of them overlapping others, as a busy street gives, and 900 below it."""
    rng = np.random.default_rng(0)
    centres = rng.uniform(60, 580, (40, 2))
    centres = np.concatenate([centres, centres[rng.integers(0, 40, 60)] + rng.normal(0, 2, (60, 2))])
    sides = rng.uniform(20, 80, (100, 2))
    boxes = np.zeros((1, 1000, 4), np.float32)
    boxes[0, :100] = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    scores = np.zeros((1, 1000), np.float32)
    scores[0, :100] = np.sort(rng.uniform(0.3, 0.95, 100))[::-1]
    classes = np.zeros((1, 1000), np.int32)
    classes[0, :100] = rng.integers(0, 5, 100)
    return Outputs(boxes, scores, classes, np.ones((1, 8), np.float32))


def compare(bundle: Bundle, engine: str, precision: str, threads: int) -> dict[str, Any]:
    """Rounds of bare engine, one camera, four cameras."""
    rounds = []
    for number in range(ROUNDS):
        row = {
            "bare_one_stream_per_s": bare_rate(bundle, engine, precision, threads),
            "bare_per_s": bare_rate(bundle, engine, precision, threads, threads),
        }
        for cameras in (1, 4):
            row[f"cameras_{cameras}_per_s"] = pipeline_rate(bundle, engine, precision, threads, cameras)
        sys.stderr.write(f"{precision} on {engine}, {threads} threads, round {number + 1}: {json.dumps(row)}\n")
        rounds.append(row)
    medians = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    return {
        "rounds": [{name: round(value, 2) for name, value in row.items()} for row in rounds],
        **{f"ratio_{n}": round(medians[f"cameras_{n}_per_s"] / medians["bare_per_s"], 3) for n in (1, 4)},
        **{f"ratio_{n}_one_stream": round(medians[f"cameras_{n}_per_s"] / medians["bare_one_stream_per_s"], 3) for n in (1, 4)},
    }


def main() -> None:
    make_video()
    bundle = coco_bundle()
    runs = {
        f"{precision}, {engine}, {threads} threads": compare(bundle, engine, precision, threads)
        for engine, precision, threads in (
            ("openvino", "fp32", 2),
            ("openvino", "fp32", 1),
            ("onnxruntime", "fp32", 2),
            ("openvino", "int8", 2),
        )
    }
    write_result("pipeline", {"video": "vtest.avi at 1920x1080, H.264", "steps_ms": steps(), "runs": runs})


if __name__ == "__main__":
    main()
