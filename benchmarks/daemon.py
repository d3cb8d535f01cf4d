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
BARE_S = 6.0
VIDEO = DATA / "videos" / "vtest.avi"

# Bare loops of the engine's own call on one fixed image, one loop a stream, in a process of its own, like the daemon.
BARE = """
import sys, threading, time
import numpy as np
engine, model, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
threads, streams, side = (int(word) for word in sys.argv[4:])
images = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), dtype=np.uint8)
if engine == "onnxruntime":
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads - streams + 1, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    calls = [lambda: session.run(None, {"images": images})] * streams
else:
    import openvino
    settings = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    requests = [compiled.create_infer_request() for _ in range(streams)]
    calls = [lambda request=request: request.infer({"images": images}, share_inputs=True, share_outputs=True)
             for request in requests]
for call in calls:
    call(), call(), call()
counts = [0] * streams
start = time.perf_counter()
def loop(index):
    while time.perf_counter() - start < seconds:
        calls[index]()
        counts[index] += 1
loops = [threading.Thread(target=loop, args=(index,)) for index in range(streams)]
[each.start() for each in loops], [each.join() for each in loops]
print(sum(counts) / (time.perf_counter() - start))
"""


def bare_rate(bundle: Bundle, engine: str, precision: str, threads: int, streams: int = 1, imgsz: int = 640) -> float:
    """Inferences per second of the engine alone, so many at once."""
    command = [sys.executable, "-c", BARE, engine, str(bundle.model_path(precision))]
    command += [str(BARE_S), str(threads), str(streams), str(imgsz)]
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
        before = bare_rate(bundle, engine, precision, threads, threads)
        summary = run_once(WORK / f"vtest-{precision}-{engine}", bundle, engine, precision, threads)
        after = bare_rate(bundle, engine, precision, threads, threads)
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
    write_result("daemon", {"video": VIDEO.name, "threads": 2, "bare_s": BARE_S, "runs": figures})


if __name__ == "__main__":
    main()
