"""The tables of docs/edge-run.md from the results of the daemon's benchmarks; those that were not run are left out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.common import RESULTS, parts_told

Figures = dict[str, Any]


def daemon_figures() -> list[str]:
    """Parts of the document, each a paragraph or a table."""
    return parts_told(_TELL)


def _pipeline(found: Figures) -> list[str]:
    rows = [
        f"Rate of the whole pipeline over the bare engine's, yolo11n at 640, {found['video']}, medians of rounds in turn:",
        "",
        "| graph, engine, threads | the engine in a loop | as many loops as threads | one camera / either | four cameras / either |",
        "|---|---|---|---|---|",
    ]
    for name, run in found["runs"].items():
        one, several = (statistics.median(row[key] for row in run["rounds"]) for key in ("bare_one_stream_per_s", "bare_per_s"))
        ratios = " | ".join(f"{run[f'ratio_{n}_one_stream']:.2f}, {run[f'ratio_{n}']:.2f}" for n in (1, 4))
        rows.append(f"| {name} | {one:.1f}/s | {several:.1f}/s | {ratios} |")
    steps = found["steps_ms"]
    told = "; ".join(
        f"{name} {steps[name]['mean_ms']:.2f} ms (p99 {steps[name]['p99_ms']:.2f})" for name in ("letterbox", "postprocess")
    )
    return [*rows, "", f"Outside the engine, a frame of 1080p to 640 and 100 boxes over the threshold: {told}."]


def rival_rows(found: Figures) -> list[str]:
    """`edge run` beside what people run today."""
    rows = [
        f"The same weights on {found['video']}, two threads, medians of rounds in turn:",
        "",
        "| | frames/s | first frame after | peak memory |",
        "|---|---|---|---|",
    ]
    rows += [
        f"| {name} | {row['frames_per_s']:.1f} | {row['first_frame_s']:.2f} s | {row['peak_resident_mb']:.0f} MB |"
        for name, row in found["medians"].items()
    ]
    rows += ["", "Ratios: " + "; ".join(f"{name} {value:.2f}" for name, value in found["ratios"].items()) + "."]
    path = RESULTS / "rivals_accuracy.json"
    if path.exists():
        accuracy = json.loads(path.read_text(encoding="utf-8"))
        lost = accuracy["map50_95_lost"]
        rows[-1] += (
            f" On {accuracy['images']} images of COCO val2017 INT8 loses {100 * lost['ours']:.2f} points of mAP50-95 here and "
            f"{100 * lost['ultralytics']:.2f} in ultralytics' export, which has no layer in float."
        )
    return rows


def _latency(found: Figures) -> list[str]:
    told = ", ".join(f"{run['outside_the_engine']['p99_ms']:.1f}" for run in found["runs"])
    whole = ", ".join(f"{run['capture_to_line']['p99_ms']:.1f}" for run in found["runs"])
    return [
        (
            f"Four cameras (1080p H.264) at 10 frames/s, {found['precision']} on {found['engine']}, {found['imgsz']} px, "
            f"cores busy {100 * found['runs'][0]['cores_busy']:.0f} %: capture to the line in the file without the engine's time, p99 "
            f"of each run {told} ms; with it {whole} ms."
        )
    ]


def _overload(found: Figures) -> list[str]:
    early, late = found["age_first_half"], found["age_second_half"]
    return [
        (
            f"{found['cameras']} cameras with three times the frames that the engine takes, {found['seconds'] / 60:.0f} minutes: the "
            f"slowest camera got {found['slowest_over_fastest_camera']:.2f} of the fastest's frames; age of frames p50 and p99 "
            f"{early['p50_ms']:.0f} and {early['p99_ms']:.0f} ms in the first half, {late['p50_ms']:.0f} and {late['p99_ms']:.0f} ms in "
            f"the second; memory {found['resident_mb_after_a_minute']} MB after a minute, {found['resident_mb_at_the_end']} MB at the end."
        )
    ]


def _soak(found: Figures) -> list[str]:
    return [
        (
            f"{found['frames']:,} frames of {found['cameras']} cameras through a small model: memory "
            f"{found['growth_mb_per_100000_frames']:+.2f} MB per 100,000 frames ({found['resident_mb_settled']} to "
            f"{found['resident_mb_end']} MB), descriptors {found['descriptors_first_last'][0]} to {found['descriptors_first_last'][1]}, "
            f"threads {found['threads_first_last'][0]} to {found['threads_first_last'][1]}."
        )
    ]


def _swaps(found: Figures) -> list[str]:
    quiet, busy = found["age_without_swaps"], found["age_while_swapping"]
    return [
        (
            f"{found['releases']} releases under load, {found['refused']} of them broken: {found['taken_over']} taken over, frames lost "
            f"{found['lost']}, doubled {found['doubled']}; age of frames p99 {busy['p99_ms']:.0f} ms while swapping, "
            f"{quiet['p99_ms']:.0f} ms without, where one inference takes {found['frame_time_ms']:.0f} ms; memory "
            f"{found['growth_mb_per_100_swaps']:+.2f} MB per 100 releases."
        )
    ]


def _rtsp(found: Figures) -> list[str]:
    return [
        (
            f"A real RTSP server killed {len(found['kills'])} times (back with another size) and frozen {len(found['freezes'])} times: "
            f"frames came {found['slowest_return_s']:.1f} s after its return at the latest; the camera beside it never waited longer "
            f"than {found['steady_camera_gaps']['max_ms']:.0f} ms for a frame."
        )
    ]


_TELL: dict[str, Callable[[Figures], list[str]]] = {
    "pipeline": _pipeline,
    "rivals": rival_rows,
    "latency": _latency,
    "overload": _overload,
    "soak": _soak,
    "swaps": _swaps,
    "rtsp": _rtsp,
}
