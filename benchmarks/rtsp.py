"""A real RTSP server that is killed 20 times, frozen 10 times and comes back with another size: how soon frames flow again.

The server comes back after 1 to 12 seconds, each time on the same port. Beside it a second camera is read, which must not
notice.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from typing import Any

from benchmarks.common import write_result
from benchmarks.watching import Running, results, running, tiny_bundle
from runtime.metrics import percentiles
from tests.servers import RtspServer

KILLS, FREEZES, SETTLE_S, LIMIT_S = 20, 10, 3.0, 60.0
SIZES = ("320x240", "640x480", "640x360")


def last_of(daemon: Running, camera: str) -> dict[str, Any]:
    """The newest line of a camera."""
    with daemon.results.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 200_000))
        lines = [line for line in file.read().split(b"\n")[1:-1] if f'"camera":"{camera}"'.encode() in line]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {"captured_s": 0.0, "epoch": -1}
    return found


def back_after(daemon: Running, returned_s: float) -> float:
    """Seconds from the server's return to the capture of the first frame."""
    while time.monotonic() < returned_s + LIMIT_S:
        if (captured_s := last_of(daemon, "shaky")["captured_s"]) >= returned_s:
            return float(captured_s - returned_s)
        time.sleep(0.05)
    return float("inf")


def main() -> None:
    rng = random.Random(0)
    shaky, steady = RtspServer("--size", SIZES[0]), RtspServer()
    source = {"kind": "video", "open_timeout_s": 5.0, "read_timeout_s": 5.0}  # the defaults
    config = {
        "model": {"bundle": str(tiny_bundle().path), "engine": "openvino", "precision": "fp32", "threads": 1},
        "cameras": {"shaky": {"source": {**source, "uri": shaky.url}}, "steady": {"source": {**source, "uri": steady.url}}},
        "sinks": [{"kind": "jsonl", "path": "work/benchmarks/rtsp/results.jsonl"}],
    }
    kills, freezes = [], []
    try:
        with running("rtsp", config) as daemon:
            time.sleep(SETTLE_S)
            for number in range(KILLS):
                away_s = rng.uniform(1, 12)
                shaky.kill()
                time.sleep(away_s)
                shaky.start("--size", SIZES[(number + 1) % len(SIZES)])
                kills.append({"away_s": round(away_s, 1), "back_s": round(back_after(daemon, time.monotonic()), 2)})
                sys.stderr.write(f"kill {number + 1}: {kills[-1]}\n")
                time.sleep(SETTLE_S)
            for number in range(FREEZES):
                away_s = rng.uniform(2, 15)
                shaky.freeze()
                time.sleep(away_s)
                shaky.thaw()
                freezes.append({"away_s": round(away_s, 1), "back_s": round(back_after(daemon, time.monotonic()), 2)})
                sys.stderr.write(f"freeze {number + 1}: {freezes[-1]}\n")
                time.sleep(SETTLE_S)
            health = daemon.health()
            summary = daemon.stop()
            rows = results(daemon.results)
    finally:
        shaky.kill()
        steady.kill()
    steady_s = [row["captured_s"] for row in rows if row["camera"] == "steady"]
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(steady_s)]
    write_result(
        "rtsp",
        {
            "server": "gst-rtsp-server, H.264, 10 frames/s, key frame every second",
            "kills": kills, "freezes": freezes,
            "slowest_return_s": max(row["back_s"] for row in [*kills, *freezes]),
            "epochs": max(row["epoch"] for row in rows if row["camera"] == "shaky") + 1,
            "steady_camera_gaps": percentiles(gaps_s).as_dict(),
            "health_at_the_end": health, "cameras": summary["cameras"],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
