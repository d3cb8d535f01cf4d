"""Writes the figures of README.md from the JSON files in `results/`: everything between the two marker lines."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS, ROOT

START, END = "<!-- figures: written by python -m benchmarks.readme -->\n", "<!-- end of figures -->\n"


def load(name: str) -> dict[str, Any]:
    """One result file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def machine_line() -> str:
    """Where the figures come from."""
    machine = load("daemon")["machine"]
    names = ("torch", "ultralytics", "onnxruntime", "openvino", "nncf")
    versions = ", ".join(f"{name} {machine[name]}" for name in names)
    hardware = f"{machine['cpu']} ({machine['cpu features']}), {machine['memory']}"
    return f"{hardware}; {versions}; seed 0. A shared machine: compare ratios, not milliseconds."


def accuracy_rows() -> list[str]:
    """The COCO weights as deployed against Ultralytics' own validation."""
    rows = ["| mAP50-95 on 128 images of COCO val2017, 640 px | yolo11n | yolov8n |", "|---|---|---|"]
    results = load("coco_parity")
    for name in results["yolo11n"]["accuracy"]:
        values = [f"{results[model]['accuracy'][name]['map50_95']:.4f}" for model in ("yolo11n", "yolov8n")]
        rows.append(f"| {name} | {' | '.join(values)} |")
    return rows


def daemon_rows() -> list[str]:
    """`edge run` on vtest.avi."""
    rows = [
        (
            "| `edge run` on vtest.avi, yolo11n at 640, 2 threads | frames/s | share of the bare engine's rate "
            "| persons a frame above 0.4 | resident, peak | first frame done after |"
        ),
        "|---|---|---|---|---|---|",
    ]
    for name, run in load("daemon")["runs"].items():
        rates = " / ".join(f"{row['edge_run_per_s']:.1f}" for row in run["rounds"])
        ratios = " / ".join(f"{ratio:.2f}" for ratio in run["ratios"])
        memory = f"{run['resident_mb']:.0f}, {run['peak_resident_mb']:.0f} MB"
        rows.append(
            f"| {name} | {rates} | {ratios} | {run['persons_per_frame_above_0.4']:.2f} | {memory} | {run['first_frame_s']:.2f} s |"
        )
    return rows


def other_lines() -> str:
    """Start-up, imports, kills."""
    startup, kills = load("startup"), load("kill9")
    first = "; ".join(
        f"{name}: {' / '.join(f'{value:.2f}' for value in values)} s"
        for name, values in startup["process start to first frame done, s"].items()
    )
    imports = ", ".join(
        f"`{name}` {startup[name]['median_s']:.2f} s (most {startup[name]['max_s']:.2f})"
        for name in ("import runtime", "edge run --help")
    )
    return (
        f"Process start to first frame done, {first}. {imports}, neither loads torch, ultralytics or onnx. "
        f"`kill -9` of the collecting daemon {kills['kills']} times: pool opened, index and files agreed {kills['pool_opened_and_agreed']} times."
    )


def demo_rows() -> list[str]:
    """The loop on the simulated line and on real sets."""
    rows = [
        "| `edge demo` | labels | without SSL: mAP50-95, F1 | with SSL | live F1 in drifted light, before → after the refresh | refresh | total |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in (
        ("simulated", "simulated line"),
        ("deeppcb", "DeepPCB"),
        ("neu_det", "NEU-DET"),
        ("neu_det_coco", "NEU-DET, from COCO weights"),
    ):
        if not (RESULTS / f"demo_{name}.json").exists():
            continue  # not measured
        summary = load(f"demo_{name}")
        arms = [f"{arm['map50_95']:.3f}, {arm['f1']:.3f}" for arm in summary["arms"].values()]
        live = summary["live_f1"]
        told = f"{live['released']:.2f} → {live['refreshed']:.2f}" if "refreshed" in live else f"{live.get('released', 0):.2f}"
        verdict = "published" if summary["refresh"]["publish"] else "kept the old one"
        rows.append(
            f"| {title} | {summary['labels']} | {arms[0]} | {arms[1]} | {told} | {verdict} | {summary['seconds']:.0f} s |"
        )
    return rows


def main() -> None:
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    head, rest = text.split(START)
    tail = rest.split(END)[1]
    parts = [machine_line(), "\n".join(demo_rows()), "\n".join(accuracy_rows()), "\n".join(daemon_rows()), other_lines()]
    path.write_text(head + START + "\n" + "\n\n".join(parts) + "\n\n" + END + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
