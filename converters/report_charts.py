"""The report's charts as SVG. They hold only our own words: nothing in them comes from a model or a file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from calibration.accuracy import RECALLS
from calibration.coverage_map import CoverageMap
from converters.html_page import svg_of
from converters.report_data import ComparisonTold, CurveTold, Int8Told, Report
from runtime.manifest import Parity

if TYPE_CHECKING:
    from matplotlib.axes import Axes  # an extra

# Okabe-Ito: told apart by colour-blind people too
_COLORS = {"fp32": "#0072b2", "fp16": "#e69f00", "int8": "#009e73"}
_GREY, _RED = "#8c959f", "#d55e00"
_STYLES = ("-", "--", ":", "-.")  # curves of good files lie on each other


def charts_of(report: Report) -> dict[str, str] | None:
    """SVG by name: pareto, calibration, scores, precision_recall and sensitivity_FAMILY; None where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401  # an extra; the tables tell most of it
    except ImportError:
        return None
    charts = {}
    if report.measurements:
        charts["pareto"] = _chart((8, 4), partial(_pareto, report=report))
    for family, told in report.int8.items():
        if told.sensitivity:
            charts[f"sensitivity_{family}"] = _chart((8, 2.8), partial(_sensitivity, told=told))
    if report.calibration and report.calibration.map:
        charts["calibration"] = _chart((6, 4), partial(_coverage, told=report.calibration.map))
    if report.comparison and report.thresholds:
        charts["scores"] = _chart((4.8, 4.8), partial(_scores, told=report.comparison, threshold=report.thresholds.confidence))
    if report.precision_recall:
        charts["precision_recall"] = _chart((6, 4), partial(_precision_recall, curves=report.precision_recall))
    return charts


def is_preferred(row: Parity, report: Report) -> bool:
    """Whether the row is the verdict's."""
    same = (row.precision, row.engine) == (report.preferred.precision, report.preferred.engine)
    return same and row.batch == 1 and not row.is_proxy and not row.refused


def accuracy_of(row: Parity) -> float:
    """MAP50-95 where there are labels, else F1 against FP32."""
    return row.labeled.map50_95 if row.labeled else row.f1_against_fp32


def _chart(size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    from matplotlib.figure import Figure  # as above; no pyplot, which keeps figures in a global

    drawn = Figure(figsize=size, layout="constrained")
    draw(drawn.subplots())
    return svg_of(drawn)


def _pareto(axes: Axes, report: Report) -> None:
    rows = sorted((row for row in report.measurements if row.batch == 1), key=lambda row: row.latency_p50_ms)
    for place, row in enumerate(rows):
        color = _GREY if row.is_proxy else _COLORS[row.precision]
        x, y = row.latency_p50_ms, accuracy_of(row)
        axes.errorbar(
            x, y, xerr=np.array([[0.0], [max(row.latency_p99_ms - x, 0.0)]]), fmt="o", color=color, capsize=3, markersize=8,
            markerfacecolor="white" if row.refused else color,
        )  # fmt: skip
        if is_preferred(row, report):
            axes.plot(x, y, "*", color="gold", markeredgecolor="black", markersize=20, zorder=3)
        told = f"{row.precision} {row.engine}{' (proxy)' if row.is_proxy else ''}{' refused' if row.refused else ''}"
        above = place % 2 == 0  # neighbours' labels would cover each other
        axes.annotate(
            told, (x, y), xytext=(0, 12 if above else -12), textcoords="offset points", ha="center", fontsize=8,
            va="bottom" if above else "top",
        )  # fmt: skip
    front = _front([row for row in rows if not row.refused and not row.is_proxy])
    axes.step(
        [row.latency_p50_ms for row in front], [accuracy_of(row) for row in front], where="post", color=_GREY, lw=1, ls="--"
    )
    axes.margins(0.15, 0.3)
    axes.set(xlabel="p50 ms, batch 1 (whisker to p99)", ylabel="mAP50-95" if rows[0].labeled else "F1 against FP32")


def _front(rows: Sequence[Parity]) -> list[Parity]:
    """Of rows by rising latency those that are more accurate than every faster one."""
    best = [-1.0, *itertools.accumulate((accuracy_of(row) for row in rows), max)]
    return [row for row, before in zip(rows, best, strict=False) if accuracy_of(row) > before]


def _sensitivity(axes: Axes, told: Int8Told) -> None:
    numbers = np.arange(1, len(told.sensitivity) + 1)
    floats = set(told.float_layers)
    colors = [_RED if floats.intersection(stretch.layers) else _COLORS["int8"] for stretch in told.sensitivity]
    axes.bar(numbers, [stretch.gain for stretch in told.sensitivity], color=colors)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="stretch of layers, input to output", ylabel="gain in float", xticks=numbers)


def _coverage(axes: Axes, told: CoverageMap) -> None:
    for chosen, color, label in ((False, _GREY, "candidate"), (True, _RED, "calibrates")):
        rows = [point for point in told.points if point[2] is chosen]
        axes.scatter([row[0] for row in rows], [row[1] for row in rows], s=14, color=color, label=f"{label} ({len(rows)})")
    axes.set(xlabel="first principal axis", ylabel="second", aspect="equal", adjustable="datalim")
    axes.legend(fontsize=8)


def _scores(axes: Axes, told: ComparisonTold, threshold: float) -> None:
    axes.plot([0, 1], [0, 1], color=_GREY, linewidth=1)
    axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"deployed threshold {threshold:g}")
    axes.axhline(threshold, color="black", linestyle="--", linewidth=1)
    axes.scatter([x for x, _ in told.scores], [y for _, y in told.scores], s=10, alpha=0.6, color=_COLORS["int8"])
    axes.set(xlabel="score in FP32", ylabel="score in INT8", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(fontsize=8, loc="lower right")


def _precision_recall(axes: Axes, curves: Sequence[CurveTold]) -> None:
    for place, curve in enumerate(curves):
        label, style = f"{curve.precision} {curve.form} on {curve.engine}", _STYLES[place % len(_STYLES)]
        axes.plot(RECALLS, curve.values, style, color=_COLORS[curve.precision], label=label)
    axes.set(xlabel="recall", ylabel="precision at IoU .50", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(fontsize=8)
