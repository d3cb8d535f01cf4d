"""report.html: one file with pictures, curves and figures, readable without a network."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from converters.html_page import figure, page, picture, svg_of, table
from edge.finetune import Finetuned
from edge.refresh.gate import Verdict
from runtime.bundle import Bundle
from runtime.detections import Detections
from runtime.draw import annotated
from runtime.files import write_atomically


@dataclass(frozen=True)
class Story:
    """Everything the report tells.

    Attributes:
        labels: labelled training images.
        arms: fine-tuning without (`baseline`) and with (`ssl`) the pretrained backbone.
        released, current: the bundle before and after the refresh.
        verdict: of the refresh.
        live_f1: F1 in drifted light, `released` and, if it was published, `refreshed`.
        daemon: the summary of `edge run`.
        infer_ms: of every live frame.
        pictures: caption, image, ground truth, detections.
        seconds: of the whole demo.
    """

    title: str
    labels: int
    names: tuple[str, ...]
    arms: Mapping[str, Finetuned]
    released: Bundle
    current: Bundle
    verdict: Verdict
    live_f1: Mapping[str, float]
    daemon: Mapping[str, Any]
    infer_ms: Sequence[float]
    pictures: Sequence[tuple[str, NDArray[np.uint8], Detections, Detections]]
    seconds: float


def summary_rows(story: Story) -> list[tuple[str, str]]:
    """The figures, name and value."""
    rows = []
    for arm, tuned in story.arms.items():
        if tuned.accuracy:
            label = "with SSL backbone" if arm == "ssl" else "without"
            rows.append((f"fine-tuned {label}", f"mAP50-95 {tuned.accuracy.map50_95:.3f}  F1 {tuned.accuracy.f1:.3f}"))
    shipped = {variant.precision for variant in story.released.manifest.variants}
    for row in story.released.manifest.parity:
        size = (
            f"{story.released.model_path(row.precision).stat().st_size / 1e6:.1f} MB"
            if row.precision in shipped
            else "not shipped"
        )
        told = f"{size}  F1 vs FP32 {row.f1_against_fp32:.3f}  p50 {row.latency_p50_ms:.1f} ms  p99 {row.latency_p99_ms:.1f} ms"
        rows.append((f"{row.precision} on {row.engine}", f"{told}  refused: {row.refused}" if row.refused else told))
    camera = next(iter(story.daemon["cameras"].values()))
    age = story.daemon["latency"]["age"]
    rows.append(
        ("daemon", f"{camera['read']} frames read, {camera['processed']} processed, {sum(camera['dropped'].values())} dropped")
    )
    rows.append(("frame age", f"p50 {age['p50_ms']:.1f} ms  p99 {age['p99_ms']:.1f} ms  max {age['max_ms']:.1f} ms"))
    rows.append(("collected", f"{story.daemon['collected']} frames"))
    verdict = story.verdict
    for name, accuracy in (("released", verdict.released), ("refreshed", verdict.candidate)):
        live = f"  live F1 in drifted light {story.live_f1[name]:.3f}" if name in story.live_f1 else ""
        rows.append((name, f"mAP50-95 {accuracy.map50_95:.3f}  F1 {accuracy.f1:.3f}{live}"))
    rows.append(("verdict", ("published" if verdict.publish else "kept the released model") + f" ({verdict.reason})"))
    rows.append(("took over by the daemon", ", ".join(story.daemon["swaps"]) or "nothing"))
    rows.append(("total", f"{story.seconds:.0f} s"))
    return rows


def summary_table(story: Story) -> str:
    """The figures as text."""
    rows = summary_rows(story)
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows)


def write_report(path: Path, story: Story) -> Path:
    """Writes the report; returns its path."""
    pictures = "".join(
        figure(_sides(image, truth, found, story.names), f"{caption}: ground truth left, detections right")
        for caption, image, truth, found in story.pictures
    )
    body = (
        f"<h1>{html.escape(story.title)}</h1>{table(summary_rows(story))}"
        f"<h2>What the daemon saw</h2>{pictures}"
        f"<h2>Learning curves</h2>{_curves(story)}"
        f"<h2>Inference time of every live frame</h2>{_histogram(story.infer_ms)}"
    )
    write_atomically(path, page(story.title, body).encode())
    return path


def _sides(image: NDArray[np.uint8], truth: Detections, found: Detections, names: Sequence[str]) -> str:
    factor = max(1, 448 // max(image.shape[:2]))
    large = np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST), np.uint8)
    sides = [
        annotated(large, Detections(side.xyxy * np.float32(factor), side.confidence, side.class_id), names)
        for side in (truth, found)
    ]
    return picture(np.hstack(sides), "ground truth and detections")


def _curves(story: Story) -> str:
    from matplotlib.figure import Figure  # only the report draws

    drawn = Figure(figsize=(8, 3), layout="constrained")
    axes = drawn.subplots(1, 2)
    for arm, tuned in story.arms.items():
        label = "with SSL backbone" if arm == "ssl" else "without"
        points = [(record["epoch"], record["map50_95"]) for record in tuned.curve if "map50_95" in record]
        axes[0].plot(*zip(*points, strict=True), marker="o", label=label)
        axes[1].plot([record["epoch"] for record in tuned.curve], [record["loss"] for record in tuned.curve], label=label)
    axes[0].set(xlabel="epoch", ylabel="mAP50-95, held out", ylim=(0, None))
    axes[1].set(xlabel="epoch", ylabel="training loss")
    axes[0].legend()
    return figure(svg_of(drawn))


def _histogram(infer_ms: Sequence[float]) -> str:
    from matplotlib.figure import Figure  # as above

    drawn = Figure(figsize=(8, 2.5), layout="constrained")
    axes = drawn.subplots()
    axes.hist(infer_ms, bins=60)
    for share in (50, 99):
        value = float(np.percentile(infer_ms, share))
        axes.axvline(value, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            f"p{share} {value:.1f} ms",
            (value, 0.92),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
        )
    axes.set(xlabel="ms, nothing trimmed", ylabel="frames", yscale="log")
    return figure(svg_of(drawn))
