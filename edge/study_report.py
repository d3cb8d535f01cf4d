"""What a study says: a table with intervals, each arm against COCO weights seed by seed, and a plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import MissingPackageError

BASELINE, FLOOR = "coco", "scratch"  # arms that the others are measured against
# Seeds split one set again and again, so runs are not independent, which widens intervals (Nadeau and Bengio 2003, "Inference
# for the generalization error") by the ratio of held-out to other images; that few of the others are labelled makes runs less
# alike, not more.

Records = Sequence[dict[str, Any]]
BySeed = dict[int, dict[str, Any]]
Gauge = tuple[float, float]  # a mean and half of its interval; not a number where there is none


@dataclass(frozen=True, slots=True)
class Row:
    """An arm on a set at a fraction of labels.

    Attributes:
        fraction: of the labels; None for the mean of all fractions, seed by seed.
        map50_95, f1: mean over the seeds and half the width of its 95 % interval (Student's t).
        over_baseline, over_floor: the same of the differences in mAP50-95 from `BASELINE` and `FLOOR`, seed by seed.
        f1_over_baseline: the same of those in F1.
        seeds: how many.
    """

    set: str
    fraction: float | None
    arm: str
    map50_95: Gauge
    f1: Gauge
    over_baseline: Gauge
    over_floor: Gauge
    f1_over_baseline: Gauge
    seeds: int


def rows_of(records: Records, fractions: Sequence[float]) -> list[Row]:
    """One row for each set, fraction and arm, in the order of the records, and one for each set and arm over its fractions.

    Args:
        records: of the runs, in any number.
        fractions: those of the plan.
    """
    cells: dict[tuple[str, float | None, str], BySeed] = {}
    for record in (*records, *_over_fractions(records, fractions)):
        cells.setdefault((record["set"], record["fraction"], record["arm"]), {})[record["seed"]] = record
    rows = []
    for (name, fraction, arm), own in cells.items():
        coco, scratch = (cells.get((name, fraction, other), {}) if other != arm else {} for other in (BASELINE, FLOOR))
        ratio = _held_out_ratio(list(own.values()))
        map50_95, f1 = (mean_and_half([record[measure] for record in own.values()], ratio) for measure in ("map50_95", "f1"))
        gains = _gains(own, coco, "map50_95"), _gains(own, scratch, "map50_95"), _gains(own, coco, "f1")
        rows.append(Row(name, fraction, arm, map50_95, f1, *gains, seeds=len(own)))
    return rows


def _over_fractions(records: Records, fractions: Sequence[float]) -> Iterator[dict[str, Any]]:
    """A record for each set, arm and seed that has every fraction, where there are several."""
    runs: dict[tuple[str, str, int], Records] = {}
    for record in records:
        key = record["set"], record["arm"], record["seed"]
        runs[key] = [*runs.get(key, ()), record]
    for (name, arm, seed), own in runs.items():
        if len(own) == len(fractions) > 1:
            means = {measure: float(np.mean([record[measure] for record in own])) for measure in ("map50_95", "f1")}
            counts = {"images": own[0]["images"], "others": _others(own[0])}
            yield {"set": name, "arm": arm, "seed": seed, "fraction": None, **counts, **means}


def _gains(own: BySeed, other: BySeed, measure: str) -> Gauge:
    """Of the seeds that both have."""
    both = [(own[seed], other[seed]) for seed in own if seed in other]
    ratio = _held_out_ratio([ours for ours, _ in both])
    return mean_and_half([ours[measure] - theirs[measure] for ours, theirs in both], ratio)


def _held_out_ratio(records: Records) -> float:
    """Held-out images over the others, mean of the seeds: whole groups are held out, so it is not quite what the plan says."""
    return float(np.mean([record["images"] / _others(record) for record in records])) if records else 0.0


def _others(record: dict[str, Any]) -> float:
    """Images that are not held out; records of before they told it have the labelled ones and their share."""
    return float(record.get("others") or record["labels"] / record["fraction"])


def mean_and_half(values: Sequence[float], ratio: float) -> Gauge:
    """Mean and half of the 95 % interval of runs that hold out a ratio of the other images; not a number where there is none.

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
    deviation = float(np.std(values, ddof=1)) * math.sqrt(1 / len(values) + ratio)
    return float(np.mean(values)), float(student.ppf(0.975, len(values) - 1)) * deviation


def summary(records: Records, fractions: Sequence[float]) -> str:
    """Markdown: the table, and what it comes to in words; see `rows_of`."""
    rows = rows_of(records, fractions)
    return "\n\n".join([table(rows), *verdicts(rows), *notes(records)])


def table(rows: Sequence[Row]) -> str:
    """Markdown; points are hundredths."""
    over = f"over {BASELINE}, points"
    heads = ("set", "labels", "arm", "mAP50-95", over, f"over {FLOOR}, points", "F1", f"F1 {over}", "seeds")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = (
            row.set, "all" if row.fraction is None else f"{100 * row.fraction:g} %", row.arm,
            _value(row.map50_95), _gain(row.over_baseline), _gain(row.over_floor), _value(row.f1), _gain(row.f1_over_baseline), str(row.seeds),
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """For each set, over its fractions: which arm comes out best, and whether self-supervision paid, from COCO and from scratch.

    Where no arm has a mean over them, for each fraction.
    """
    told = []
    for name in dict.fromkeys(row.set for row in rows):
        own = [row for row in rows if row.set == name]
        if whole := [row for row in own if row.fraction is None]:
            told += _verdict(name, whole)
        else:
            for fraction in dict.fromkeys(row.fraction for row in own):
                told += _verdict(f"{name} with {100 * (fraction or 0):g} %", [row for row in own if row.fraction == fraction])
    return told


def _verdict(title: str, rows: Sequence[Row]) -> list[str]:
    """None where nothing is compared with the baseline."""
    rivals = [row for row in rows if row.arm not in (BASELINE, FLOOR) and not math.isnan(row.over_baseline[0])]
    if not rivals:
        return []
    best = max(rivals, key=lambda row: row.over_baseline[0])
    gains = f"{_against(best.over_baseline)} in mAP50-95 and {_against(best.f1_over_baseline)} in F1"
    said = [f"{title}: the best arm beside {BASELINE} is {best.arm}, over {BASELINE} {gains}"]
    for arm, other, gauge in (
        ("coco+ssl", BASELINE, [row.over_baseline for row in rows if row.arm == "coco+ssl"]),
        ("ssl", FLOOR, [row.over_floor for row in rows if row.arm == "ssl"]),
    ):
        said += [f"{arm} over {other} {_against(each)} in mAP50-95" for each in gauge if not math.isnan(each[0])]
    return ["; ".join(said) + "."]


def _against(gauge: Gauge) -> str:
    mean, half = gauge
    points = f"{100 * mean:+.1f} points"
    if math.isnan(half):
        return f"{points} (one seed)"
    beyond = "beyond" if abs(mean) > half else "within"
    return f"{points} ({beyond} its interval of ± {100 * half:.1f})"


def notes(records: Records) -> list[str]:
    """What the table cannot show: how good teachers are, and runs whose teacher believed nothing, so that they had labels alone."""
    taught: dict[tuple[str, str], Records] = {}
    for record in records:
        if "teacher_map50_95" in record:
            key = record["arm"], record["set"]
            taught[key] = [*taught.get(key, ()), record]
    return [_of_teachers(*key, own) for key, own in taught.items()] + [
        f"{record['arm']} on {record['set']} with {100 * record['fraction']:g} %, seed {record['seed']}: the teacher believed no box "
        "at its last look, so frames took no part then."
        for record in records
        if record.get("last_look_boxes") == 0
    ]


def _of_teachers(arm: str, name: str, records: Records) -> str:
    told = []
    for share in sorted({record["fraction"] for record in records}):
        own = [record for record in records if record["fraction"] == share]
        map50_95, f1 = (np.mean([record[f"teacher_{measure}"] for record in own]) for measure in ("map50_95", "f1"))
        told.append(f"{map50_95:.3f} / {f1:.3f} with {100 * share:g} %")
    cost = np.median([record["teacher_seconds"] for record in records])  # a run that was paused took longer
    return f"The teachers of {arm} on {name} have mAP50-95 / F1 {', '.join(told)} of the labels; training one took {cost:.0f} s in the median."


def _value(gauge: Gauge) -> str:
    mean, half = gauge
    return f"{mean:.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def _gain(gauge: Gauge) -> str:
    """In points, marked where the interval leaves zero out."""
    mean, half = gauge
    if math.isnan(mean):
        return ""
    if math.isnan(half):
        return f"{100 * mean:+.1f}"
    mark = "" if abs(mean) <= half else " ▲" if mean > 0 else " ▼"
    return f"{100 * mean:+.1f} ± {100 * half:.1f}{mark}"


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
            own = [(row.fraction, row) for row in rows if (row.set, row.arm) == (name, arm) and row.fraction is not None]
            shares, found = zip(*sorted(own, key=lambda pair: pair[0]), strict=True) if own else ((), ())
            half = [0.0 if math.isnan(row.map50_95[1]) else row.map50_95[1] for row in found]
            axis.errorbar(
                [100 * share for share in shares], [row.map50_95[0] for row in found], half, color=f"C{index}", marker="o",
                markersize=3, capsize=2, label=arm,
            )  # fmt: skip
        axis.set(title=name, xlabel="labels, %", ylabel="mAP50-95")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    FigureCanvasSVG(figure)
    figure.savefig(path, format="svg", metadata={"Date": None})
