"""report.html: one file with pictures, curves and figures, readable without a network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.finetune import Finetuned
from edge.refresh.gate import Verdict
from runtime.bundle import Bundle
from runtime.detections import Detections
from runtime.draw import annotated
from runtime.files import write_atomically

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#1b1f24;background:#fff}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{padding:.25rem .8rem;border-bottom:1px solid #d8dee4;text-align:right}
td:first-child,th:first-child{text-align:left}figure{margin:0 0 1.5rem}figcaption{color:#57606a}img,svg{max-width:100%;height:auto}
"""


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
    for row in story.released.manifest.parity:
        size = story.released.model_path(row.precision).stat().st_size / 1e6
        rows.append(
            (
                f"{row.precision} on {row.engine}",
                f"{size:.1f} MB  F1 vs FP32 {row.f1_against_fp32:.3f}  p50 {row.latency_p50_ms:.1f} ms  p99 {row.latency_p99_ms:.1f} ms",
            )
        )
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
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in summary_rows(story))
    pictures = "".join(
        _figure(_picture(*picture[1:], story.names), f"{picture[0]}: ground truth left, detections right")
        for picture in story.pictures
    )
    body = (
        f"<h1>{html.escape(story.title)}</h1><table>{rows}</table>"
        f"<h2>What the daemon saw</h2>{pictures}"
        f"<h2>Learning curves</h2>{_curves(story)}"
        f"<h2>Inference time of every live frame</h2>{_histogram(story.infer_ms)}"
    )
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Edgeloop: {html.escape(story.title)}</title>'
    write_atomically(
        path, f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>'.encode()
    )
    return path


def _picture(image: NDArray[np.uint8], truth: Detections, found: Detections, names: Sequence[str]) -> str:
    factor = max(1, 448 // max(image.shape[:2]))
    large = np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST), np.uint8)
    sides = [
        annotated(large, Detections(side.xyxy * np.float32(factor), side.confidence, side.class_id), names)
        for side in (truth, found)
    ]
    _, data = cv2.imencode(".jpg", np.hstack(sides), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return f'<img alt="ground truth and detections" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _curves(story: Story) -> str:
    from matplotlib.figure import Figure  # comes with ultralytics; only the report draws

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, 2)
    for arm, tuned in story.arms.items():
        label = "with SSL backbone" if arm == "ssl" else "without"
        points = [(record["epoch"], record["map50_95"]) for record in tuned.curve if "map50_95" in record]
        axes[0].plot(*zip(*points, strict=True), marker="o", label=label)
        axes[1].plot([record["epoch"] for record in tuned.curve], [record["loss"] for record in tuned.curve], label=label)
    axes[0].set(xlabel="epoch", ylabel="mAP50-95, held out", ylim=(0, None))
    axes[1].set(xlabel="epoch", ylabel="training loss")
    axes[0].legend()
    return _svg(figure)


def _histogram(infer_ms: Sequence[float]) -> str:
    from matplotlib.figure import Figure  # as above

    figure = Figure(figsize=(8, 2.5), layout="constrained")
    axes = figure.subplots()
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
    return _svg(figure)


def _svg(figure: Any) -> str:
    data = io.StringIO()
    figure.savefig(data, format="svg", metadata={"Date": None})
    text = data.getvalue()
    return f"<figure>{text[text.index('<svg') :]}</figure>"
