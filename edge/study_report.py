"""What a study says: a table with intervals, each arm against COCO weights seed by seed, and a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import MissingPackageError

BASELINE = "coco"
# Seeds split one set again and again, so runs are not independent: held-out over training images, which widens intervals
# (Nadeau and Bengio 2003, "Inference for the generalization error").
_OVERLAP = 0.2 / 0.8

Records = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Row:
    """An arm on a set at a fraction of labels.

    Attributes:
        mean: of `map50_95` over the seeds.
        half: half the width of its 95 % interval (Student's t); not a number for one seed.
        gain: mean difference from the baseline with the same seed and labels; not a number for the baseline.
        gain_half: half the width of its interval.
        seeds: how many.
    """

    set: str
    fraction: float
    arm: str
    mean: float
    half: float
    gain: float
    gain_half: float
    seeds: int


def rows_of(records: Records, measure: str = "map50_95", baseline: str = BASELINE) -> list[Row]:
    """One row for each set, fraction and arm, in the order of the records."""
    values: dict[tuple[str, float, str], dict[int, float]] = {}
    for record in records:
        values.setdefault((record["set"], record["fraction"], record["arm"]), {})[record["seed"]] = record[measure]
    rows = []
    for (name, fraction, arm), found in values.items():
        other = values.get((name, fraction, baseline), {})
        gains = [value - other[seed] for seed, value in found.items() if seed in other and arm != baseline]
        mean, half = mean_and_half(list(found.values()))
        gain, gain_half = mean_and_half(gains)
        rows.append(Row(name, fraction, arm, mean, half, gain, gain_half, len(found)))
    return rows


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval; not a number where there is none.

    Raises:
        MissingPackageError: scipy is not installed.
    """
    try:
        from scipy.stats import t as student
    except ImportError as error:
        raise MissingPackageError("scipy", "train") from error
    if not values:
        return math.nan, math.nan
    if len(values) == 1:
        return float(values[0]), math.nan
    deviation = float(np.std(values, ddof=1)) * math.sqrt(1 / len(values) + _OVERLAP)
    return float(np.mean(values)), float(student.ppf(0.975, len(values) - 1)) * deviation


def table(rows: Sequence[Row], measure: str = "mAP50-95") -> str:
    """Markdown; points are hundredths."""
    lines = [f"| set | labels | arm | {measure} | against {BASELINE}, points | seeds |", "|---|---|---|---|---|---|"]
    for row in rows:
        gain = "" if math.isnan(row.gain) else f"{100 * row.gain:+.1f}{_half(100 * row.gain_half)}{_mark(row)}"
        lines.append(
            f"| {row.set} | {100 * row.fraction:g} % | {row.arm} | {row.mean:.3f}{_half(row.half, 3)} | {gain} | {row.seeds} |"
        )
    return "\n".join(lines)


def _half(value: float, digits: int = 1) -> str:
    return "" if math.isnan(value) else f" ± {value:.{digits}f}"


def _mark(row: Row) -> str:
    """Whether the interval leaves zero out."""
    if math.isnan(row.gain_half) or abs(row.gain) <= row.gain_half:
        return ""
    return " ▲" if row.gain > 0 else " ▼"


def plot(rows: Sequence[Row], path: Path) -> None:
    """A panel for each set: accuracy over the share of labels, a line an arm.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", "convert") from error
    sets, arms = list(dict.fromkeys(row.set for row in rows)), list(dict.fromkeys(row.arm for row in rows))
    figure = Figure(figsize=(4.2 * len(sets), 3.6), layout="constrained")
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    for axis, name in zip(axes, sets, strict=True):
        for index, arm in enumerate(arms):
            found = sorted((row for row in rows if (row.set, row.arm) == (name, arm)), key=lambda row: row.fraction)
            half = [0.0 if math.isnan(row.half) else row.half for row in found]
            axis.errorbar(
                [100 * row.fraction for row in found], [row.mean for row in found], half, color=f"C{index}", marker="o",
                markersize=3, capsize=2, label=arm,
            )  # fmt: skip
        axis.set(title=name, xlabel="labels, %", ylabel="mAP50-95")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    FigureCanvasSVG(figure)
    figure.savefig(path, format="svg", metadata={"Date": None})
