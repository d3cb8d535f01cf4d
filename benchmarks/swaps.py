"""200 releases under load, a quarter of them broken: frames lost or doubled, memory, and the latency of frames meanwhile."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.common import WORK, coco_bundle, write_result
from benchmarks.daemon import bare_rate
from benchmarks.watching import Running, results, running, slope_per
from runtime.bundle import Bundle, publish
from runtime.metrics import percentiles

SWAPS, BROKEN_EVERY, LOAD, RUN_S = 200, 4, 0.5, 0.5
CAMERAS = STREAMS = 2


def release(source: Bundle, folder: Path, number: int) -> Path:
    """The same model as another release; every fourth is broken, each time in another way."""
    path = folder / f"r{number:03d}"
    shutil.copytree(source.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["lineage"]["note"] = str(number)
    (path / "manifest.json").write_text(json.dumps(manifest))
    if number % BROKEN_EVERY == BROKEN_EVERY - 1:
        _break(path, manifest, (number // BROKEN_EVERY) % 5)
    return path


def _break(path: Path, manifest: dict[str, Any], how: int) -> None:
    model = path / "model.fp32.onnx"
    if how == 0:
        model.write_bytes(model.read_bytes()[:-1000])
    elif how == 1:
        model.unlink()
    elif how == 2:
        (path / "manifest.json").write_text("{")
    elif how == 3:  # whole and agreeing with its manifest, but no model
        import hashlib

        model.write_bytes(b"no ONNX" * 100)
        manifest["files"]["model.fp32.onnx"] = hashlib.sha256(model.read_bytes()).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))
    else:
        manifest["classes"] = [f"x{index}" for index in range(len(manifest["classes"]))]
        (path / "manifest.json").write_text(json.dumps(manifest))


def settled(daemon: Running, taken: int, refused: int, limit_s: float = 60.0) -> None:
    """Waits until that many releases were taken over and refused."""
    until_s = time.monotonic() + limit_s
    while time.monotonic() < until_s:
        log = daemon.log()
        if log.count("took over bundle") >= taken and log.count("new bundle refused") >= refused:
            return
        time.sleep(0.05)
    raise RuntimeError(f"{taken} taken over and {refused} refused did not happen: {daemon.log()[-1000:]}")


def main() -> None:
    bundle, folder = coco_bundle(), WORK / "swaps-bundles"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    publish(folder, Bundle.open(Path(shutil.copytree(bundle.path, folder / "first"))))
    bare = bare_rate(bundle, "openvino", "fp32", 2, STREAMS)
    fps = LOAD * bare / CAMERAS
    config = {
        "model": {
            "bundle": str(folder / "current"),
            "engine": "openvino",
            "precision": "fp32",
            "threads": 2,
            "streams": STREAMS,
            "reload_s": 0.1,
        },
        "cameras": {
            f"cam{index}": {"source": {"kind": "simulated", "seed": index, "size_wh": [640, 480]}, "fps": round(fps, 3)}
            for index in range(CAMERAS)
        },
        "sinks": [{"kind": "jsonl", "path": "work/benchmarks/swaps/results.jsonl"}],
    }
    health, taken, refused, quiet_until_s = [], 0, 0, 0.0
    with running("swaps", config) as daemon:
        time.sleep(20)  # frames without swaps, to compare with
        quiet_until_s = time.monotonic()
        for number in range(SWAPS):
            path = release(bundle, folder, number)
            broken = number % BROKEN_EVERY == BROKEN_EVERY - 1
            taken, refused = taken + (not broken), refused + broken
            (folder / "next").unlink(missing_ok=True)
            (folder / "next").symlink_to(path.name)
            (folder / "next").replace(folder / "current")
            settled(daemon, taken, refused)
            time.sleep(RUN_S)
            health.append(daemon.health())
            if number:
                shutil.rmtree(folder / f"r{number - 1:03d}")
            if number % 10 == 9:
                sys.stderr.write(f"{number + 1} releases: {health[-1]}\n")
        summary = daemon.stop()
        rows = results(daemon.results)
    doubled = [key for key, count in Counter((row["camera"], row["frame"]) for row in rows).items() if count > 1]
    late = health[SWAPS // 4 :]
    quiet = [row["age_ms"] / 1e3 for row in rows if row["captured_s"] < quiet_until_s]
    swapping = [row["age_ms"] / 1e3 for row in rows if row["captured_s"] >= quiet_until_s]
    write_result(
        "swaps",
        {
            "releases": SWAPS, "taken_over": len(summary["swaps"]), "refused": summary["bundles_refused"],
            "models_seen_in_results": len({row["bundle"] for row in rows}),
            "bare_per_s": round(bare, 1), "fps_of_each_camera": round(fps, 2), "frame_time_ms": round(STREAMS * 1e3 / bare, 2),
            "lost": sum(
                counts["read"] - counts["processed"] - sum(counts["dropped"].values()) for counts in summary["cameras"].values()
            ),
            "dropped": {name: counts["dropped"] for name, counts in summary["cameras"].items()},
            "doubled": len(doubled), "frames": len(rows),
            "age_without_swaps": percentiles(quiet).as_dict(), "age_while_swapping": percentiles(swapping).as_dict(),
            "resident_mb_first_last": [round(late[0]["resident_bytes"] / 1e6, 1), round(late[-1]["resident_bytes"] / 1e6, 1)],
            "growth_mb_per_100_swaps": round(
                100 * slope_per([row["resident_bytes"] / 1e6 for row in late], [float(n) for n in range(len(late))]), 3
            ),
            "descriptors_first_last": [late[0]["descriptors"], late[-1]["descriptors"]],
            "threads_first_last": [late[0]["threads"], late[-1]["threads"]],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
