"""`edge run` on videos/vtest.avi: people found, frames accounted for, memory, first frame, rate against the bare engine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import DATA, ROOT, WORK, coco_bundle, edge_run, write_result
from runtime.bundle import Bundle

ROUNDS = 1
BARE_RUNS = 100
VIDEO = DATA / "videos" / "vtest.avi"

# A bare loop of the engine's own call on one fixed image, in a process of its own, like the daemon.
BARE = """
import sys, time
import numpy as np
from pathlib import Path
from runtime.backends import open_model, warm
backend = open_model(sys.argv[1], Path(sys.argv[2]), "", int(sys.argv[4]))
images = np.random.default_rng(0).integers(0, 256, (1, 640, 640, 3), dtype=np.uint8)
warm(backend, images, runs=3)
run = backend._session.run if sys.argv[1] == "onnxruntime" else None
start = time.perf_counter()
for _ in range(int(sys.argv[3])):
    if run:
        run(None, {"images": images})
    else:
        backend._request.infer({"images": images}, share_inputs=True, share_outputs=True)
print(int(sys.argv[3]) / (time.perf_counter() - start))
"""


def bare_rate(bundle: Bundle, engine: str, precision: str, threads: int) -> float:
    """Inferences per second of the engine alone."""
    command = [sys.executable, "-c", BARE, engine, str(bundle.model_path(precision)), str(BARE_RUNS), str(threads)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def run_once(folder: Path, bundle: Bundle, engine: str, precision: str, threads: int) -> dict[str, Any]:
    """One pass over the video at full speed."""
    shutil.rmtree(folder, ignore_errors=True)
    config = {
        "model": {"bundle": str(bundle.path), "engine": engine, "precision": precision, "threads": threads},
        "cameras": {"vtest": {"source": {"kind": "video", "uri": str(VIDEO)}, "fps": "max"}},
        "sinks": [{"kind": "jsonl", "path": str(folder / "results.jsonl")}],
    }
    summary = edge_run(folder, config)
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    people = [sum(d["class"] == "person" and d["confidence"] > 0.4 for d in row["detections"]) for row in rows]
    return {**summary, "persons_per_frame_above_0.4": round(sum(people) / len(people), 3)}


def measure(bundle: Bundle, engine: str, precision: str, threads: int = 2) -> dict[str, Any]:
    """Rounds of bare engine, `edge run`, bare engine."""
    rounds = []
    for _ in range(ROUNDS):
        before = bare_rate(bundle, engine, precision, threads)
        summary = run_once(WORK / f"vtest-{precision}-{engine}", bundle, engine, precision, threads)
        after = bare_rate(bundle, engine, precision, threads)
        bare = (before + after) / 2
        rounds.append(
            {
                "bare_per_s": round(bare, 2),
                "edge_run_per_s": summary["frames_per_s"],
                "ratio": round(summary["frames_per_s"] / bare, 3),
            }
        )
    counts = summary["cameras"]["vtest"]
    return {
        "rounds": rounds,
        "ratios": [row["ratio"] for row in rounds],
        "persons_per_frame_above_0.4": summary["persons_per_frame_above_0.4"],
        "frames": counts,
        "every_frame_accounted_for": counts["read"] == counts["processed"] + sum(counts["dropped"].values()),
        "resident_mb": summary["resident_mb"],
        "peak_resident_mb": summary["peak_resident_mb"],
        "first_frame_s": summary["first_frame_s"],
        "latency": summary["latency"],
    }


def main() -> None:
    bundle = coco_bundle()
    combinations = (("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "int8"))
    figures = {f"{precision}, {engine}": measure(bundle, engine, precision) for engine, precision in combinations}
    write_result("daemon", {"video": VIDEO.name, "threads": 2, "bare_runs": BARE_RUNS, "runs": figures})


if __name__ == "__main__":
    main()
