"""At least 500,000 frames through `edge run` with a small model: growth of memory, descriptors and threads."""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.common import write_result
from benchmarks.watching import running, slope_per, tiny_bundle

CAMERAS, EVERY_S = 4, 2.0
SETTLED = 0.1  # share of the frames after which the caches are full


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, default=520_000)
    frames = parser.parse_args().frames
    bundle = tiny_bundle()
    source = {"kind": "simulated", "frames": frames // CAMERAS, "size_wh": [64, 64]}
    config = {
        "model": {"bundle": str(bundle.path), "engine": "openvino", "precision": "int8", "threads": 1},
        "cameras": {f"cam{index}": {"source": {**source, "seed": index}, "fps": "max"} for index in range(CAMERAS)},
        "sinks": [{"kind": "jsonl", "path": "work/benchmarks/soak/results.jsonl"}],
        "collect": {"pool": "work/benchmarks/soak/pool", "every_n": 50, "quota_mb": 5, "below_confidence": 0.0},
    }
    health = []
    with running("soak", config) as daemon:
        began_s = time.monotonic()
        while daemon.alive:
            time.sleep(EVERY_S)
            try:
                health.append({"s": round(time.monotonic() - began_s, 1), **daemon.health()})
            except (OSError, KeyError):  # it has just ended
                break
            if len(health) % 30 == 0:
                sys.stderr.write(f"{health[-1]}\n")
        summary = daemon.finish()
    processed = sum(counts["processed"] for counts in summary["cameras"].values())
    rate = processed / health[-1]["s"]
    settled = [row for row in health if row["s"] * rate > SETTLED * processed]
    done = [row["s"] * rate / 100_000 for row in settled]
    growth = {
        name: slope_per([float(row[name]) for row in settled], done) for name in ("resident_bytes", "descriptors", "threads")
    }
    write_result(
        "soak",
        {
            "frames": processed, "seconds": health[-1]["s"], "frames_per_s": summary["frames_per_s"],
            "cameras": CAMERAS, "collected": summary["collected"],
            "every_frame_accounted_for": all(
                counts["read"] == counts["processed"] + sum(counts["dropped"].values()) for counts in summary["cameras"].values()
            ),
            "resident_mb_settled": round(settled[0]["resident_bytes"] / 1e6, 2),
            "resident_mb_end": round(settled[-1]["resident_bytes"] / 1e6, 2),
            "growth_mb_per_100000_frames": round(growth["resident_bytes"] / 1e6, 4),
            "descriptors_first_last": [settled[0]["descriptors"], settled[-1]["descriptors"]],
            "threads_first_last": [settled[0]["threads"], settled[-1]["threads"]],
            "latency": summary["latency"],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
