"""Capture to event, minus the engine's time: four cameras at 10 frames/s with the machine at about 60 % load.

An event is a line in the JSONL file. Of the time from a frame's capture to its line, the part in which the engine ran for
this frame, or on all its streams for frames before it, is the engine's; the rest is ours. Cameras start when they start: their
phases are as chance has it, told in the result.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import DATA, WORK, coco_pool, write_result
from benchmarks.daemon import bare_rate
from benchmarks.pipeline import VIDEO, make_video
from benchmarks.watching import results, running
from converters.convert import convert, to_stderr
from converters.request import ConvertRequest
from runtime.bundle import Bundle
from runtime.metrics import percentiles

CAMERAS, FPS, SECONDS, IMGSZ = 4, 10.0, 45.0, 320
STREAMS = 2
STARTS = 2  # runs, each with other phases


def ours_s(rows: list[dict[str, Any]], postprocess_s: float, streams: int) -> list[float]:
    """For each line, seconds from capture to it in which the engine ran neither for it nor on all streams for others."""
    captured = np.array([row["captured_s"] for row in rows])
    written = captured + np.array([row["written_ms"] for row in rows]) / 1e3
    ends = captured + np.array([row["age_ms"] for row in rows]) / 1e3 - postprocess_s
    begins = ends - np.array([row["infer_ms"] for row in rows]) / 1e3
    full = all_busy(begins, ends, streams)
    found = []
    for index, (captured_s, written_s) in enumerate(zip(captured, written, strict=True)):
        waited = np.minimum(full[:, 1], begins[index]) - np.maximum(full[:, 0], captured_s)
        found.append(float(written_s - captured_s - (ends - begins)[index] - waited[waited > 0].sum()))
    return found


def all_busy(begins: NDArray[np.float64], ends: NDArray[np.float64], streams: int) -> NDArray[np.float64]:
    """Spans (n, 2) in which so many intervals or more lie over each other."""
    times = np.concatenate([begins, ends])
    steps = np.concatenate([np.ones(len(begins)), -np.ones(len(ends))])
    order = np.argsort(times, kind="stable")
    running = np.cumsum(steps[order])
    spans = np.stack([times[order][:-1], times[order][1:]], axis=1)
    return spans[running[:-1] >= streams]


def cpu_share(pid_stat: tuple[float, float], later: tuple[float, float]) -> float:
    """Share of the machine's cores that were busy between two readings of /proc/stat."""
    return 1 - (later[1] - pid_stat[1]) / (later[0] - pid_stat[0])


def cpu_times() -> tuple[float, float]:
    """All and idle ticks of all cores."""
    values = [float(word) for word in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
    return sum(values), values[3] + values[4]


def small_bundle() -> Bundle:
    """The COCO weights at a smaller input, FP32. Made once."""
    out = WORK / f"yolo11n-coco-{IMGSZ}"
    if out.exists():
        return Bundle.open(out)
    weights = DATA / "weights" / "yolo11n_coco_dequant_state_fp16.pt"
    return convert(ConvertRequest(weights, coco_pool(), IMGSZ, precision="fp32"), out, to_stderr)


def main() -> None:
    make_video()
    # 40 frames a second shall load this machine to 60 %, decoding included: the size of the input is chosen for that.
    engine, precision = "openvino", "fp32"
    bundle = small_bundle()
    bare = bare_rate(bundle, engine, precision, 2, STREAMS, IMGSZ)
    runs = []
    for _ in range(STARTS):
        config = {
            "model": {"bundle": str(bundle.path), "engine": engine, "precision": precision, "threads": 2, "streams": STREAMS},
            "cameras": {
                f"cam{index}": {"source": {"kind": "video", "uri": str(VIDEO), "loop": True}, "fps": FPS}
                for index in range(CAMERAS)
            },
            "sinks": [{"kind": "jsonl", "path": "work/benchmarks/latency/results.jsonl"}],
        }
        with running("latency", config) as daemon:
            before = cpu_times()
            time.sleep(SECONDS)
            busy = cpu_share(before, cpu_times())
            summary = daemon.stop()
            rows = results(daemon.results)
        rows = rows[CAMERAS * int(FPS) :]  # the first second fills caches
        postprocess_s = summary["latency"]["postprocess"]["p50_ms"] / 1e3
        phases = {row["camera"]: round(row["captured_s"] % (1 / FPS) * 1e3) for row in rows[-40:]}
        runs.append(
            {
                "frames": len(rows), "dropped": sum(c["dropped"]["overload"] for c in summary["cameras"].values()),
                "cores_busy": round(busy, 3), "phases_ms": phases,
                "outside_the_engine": percentiles(ours_s(rows, postprocess_s, STREAMS)).as_dict(),
                "but_for_this_frames_inference": percentiles([(row["written_ms"] - row["infer_ms"]) / 1e3 for row in rows]).as_dict(),
                "capture_to_line": percentiles([row["written_ms"] / 1e3 for row in rows]).as_dict(),
                "engine": percentiles([row["infer_ms"] / 1e3 for row in rows]).as_dict(),
            }
        )  # fmt: skip
    write_result(
        "latency",
        {
            "engine": engine, "precision": precision, "threads": 2, "streams": STREAMS, "bare_per_s": round(bare, 1),
            "imgsz": IMGSZ, "engine_load": round(CAMERAS * FPS / bare, 3),
            "cameras": CAMERAS, "fps": FPS, "video": "1080p H.264", "runs": runs,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
