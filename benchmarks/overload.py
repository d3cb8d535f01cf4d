"""16 simulated cameras, three times as many frames as the engine can take, for ten minutes: nobody starves, nothing grows."""

from __future__ import annotations

import sys
import time

from benchmarks.common import coco_bundle, write_result
from benchmarks.daemon import bare_rate
from benchmarks.watching import results, running, slope_per
from runtime.metrics import percentiles

CAMERAS, OVERLOAD, SECONDS, EVERY_S = 16, 3.0, 600.0, 5.0


def main() -> None:
    bundle = coco_bundle()
    bare = bare_rate(bundle, "openvino", "int8", 2, 2)
    # Unequal rates, 0.5 to 1.5 of the mean: fairness among equals would be no feat.
    rates = [OVERLOAD * bare / CAMERAS * (0.5 + index / (CAMERAS - 1)) for index in range(CAMERAS)]
    config = {
        "model": {"bundle": str(bundle.path), "engine": "openvino", "precision": "int8", "threads": 2},
        "cameras": {
            f"cam{index:02d}": {"source": {"kind": "simulated", "seed": index, "size_wh": [640, 480]}, "fps": round(rate, 3)}
            for index, rate in enumerate(rates)
        },
    }
    config["sinks"] = [{"kind": "jsonl", "path": "work/benchmarks/overload/results.jsonl"}]
    health = []
    with running("overload", config) as daemon:
        began_s = time.monotonic()
        while (elapsed_s := time.monotonic() - began_s) < SECONDS:
            time.sleep(EVERY_S)
            health.append({"s": round(elapsed_s, 1), **daemon.health()})
            sys.stderr.write(f"{health[-1]}\n")
        summary = daemon.stop()
        rows = results(daemon.results)
    served = {name: counts["processed"] for name, counts in summary["cameras"].items()}
    settled = [row for row in health if row["s"] > 60]
    ages_s = [row["age_ms"] / 1e3 for row in rows]
    half = len(ages_s) // 2
    write_result(
        "overload",
        {
            "cameras": CAMERAS, "seconds": SECONDS, "bare_per_s": round(bare, 2),
            "camera_rates_per_s": [round(rate, 2) for rate in rates],
            "processed": served,
            "slowest_over_fastest_camera": round(min(served.values()) / max(served.values()), 3),
            "every_frame_accounted_for": all(
                counts["read"] == counts["processed"] + sum(counts["dropped"].values()) for counts in summary["cameras"].values()
            ),
            "frames_per_s": summary["frames_per_s"],
            "age_first_half": percentiles(ages_s[:half]).as_dict(),
            "age_second_half": percentiles(ages_s[half:]).as_dict(),
            "resident_mb_after_a_minute": round(settled[0]["resident_bytes"] / 1e6, 1),
            "resident_mb_at_the_end": round(settled[-1]["resident_bytes"] / 1e6, 1),
            "resident_growth_mb_per_minute": round(
                60 * slope_per([row["resident_bytes"] / 1e6 for row in settled], [row["s"] for row in settled]), 4
            ),
            "descriptors": [settled[0]["descriptors"], settled[-1]["descriptors"]],
            "threads": [settled[0]["threads"], settled[-1]["threads"]],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
