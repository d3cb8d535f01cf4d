"""The tables of docs/self-supervision.md and docs/study.md from the results of the training benchmarks; those not run are left out."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.common import RESULTS, parts_told
from edge.study_report import notes, rows_of, table, verdicts

Figures = dict[str, Any]
_ARMS_TOLD = ("scratch", "coco", "coco+ssl", "coco+pool", "coco+teacher")


def training_figures() -> list[str]:
    """Parts of the document, each a paragraph or a table."""
    return parts_told(_TELL)


def study_figures() -> list[str]:
    """One table for each study, with its plan in a line."""
    parts: list[str] = []
    for path in sorted(RESULTS.glob("study_*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        plan = found["plan"]
        rows = rows_of(found["records"], plan["fractions"])
        parts += [
            (
                f"{', '.join(plan['sets'])}: {plan['model']} at {plan['imgsz']} px, {plan['finetune']['steps']} steps of "
                f"{plan['finetune']['batch']} images; self-supervision {plan['pretrain']['epochs']} epochs at "
                f"{plan['pretrain']['imgsz']} px{_longer(plan)}; {len(found['records'])} runs."
            ),
            "",
            table(rows),
            "",
            *[f"{told}\n" for told in (*verdicts(rows), *_missing(found), *notes(found["records"]))],
        ]
    return parts or ["Not run yet."]


def _longer(plan: Figures) -> str:
    """Arms with another budget of self-supervision."""
    own = {arm: spec["ssl"] for arm, spec in plan["arms"].items() if isinstance(spec.get("ssl"), dict)}
    usual = plan["pretrain"]
    told = [
        f"{arm} {ssl.get('epochs', usual['epochs'])} at a rate of {ssl.get('lr', usual['lr']):g}"
        for arm, ssl in own.items()
        if "epochs" in ssl
    ]
    return f", at a rate of {usual['lr']:g} ({', '.join(told)})" if told else ""


def gains() -> list[str]:
    """What self-supervision, the pool and a teacher gave over COCO weights with the same labels, over all fractions."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("study_*.json"))]
    rows = [row for each in found for row in rows_of(each["records"], each["plan"]["fractions"]) if row.fraction is None]
    sizes = sorted(each["plan"]["imgsz"] for each in found)
    title = (
        f"Few labels, `edge study` on public sets: {found[0]['plan']['model']} at {sizes[0]} to {sizes[-1]} px, means over "
        f"{', '.join(f'{100 * each:g}' for each in found[0]['plan']['fractions'])} % of the labels, with 95 % intervals over the seeds "
        "(▲ ▼ beyond them); every arm and what it costs is in docs/study.md:"
    )
    return [title, "", table([row for row in rows if row.arm in _ARMS_TOLD])]


def _missing(found: Figures) -> list[str]:
    """What of the plan was not run."""
    plan = found["plan"]
    each = len(plan["sets"]) * len(plan["fractions"]) * len(plan["seeds"])
    run = {arm: sum(record["arm"] == arm for record in found["records"]) for arm in plan["arms"]}
    told = ", ".join(f"{arm} {each - count} of {each}" for arm, count in run.items() if count < each)
    return [f"Not run: {told}."] if told else []


def _methods(found: Figures) -> list[str]:
    rows = [
        (
            f"Each method from scratch on {found['set']} ({found['model']}, {found['imgsz']} px, "
            f"batch {found['batch']}, {found['precision']}, one core); kNN and linear accuracy over labelled boxes, in points above fresh "
            "weights of the same part (the rows' CPUs are in the file):"
        ),
        "",
        "| method | part | epochs | kNN | over fresh | linear | over fresh | images/s | minutes | loss, first to last epoch | effective rank |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in found["methods"].items():
        loss, rank = run["loss"], run["effective_rank"]
        rows.append(
            f"| {name} | {run['part']} | {run['epochs']} "
            f"| {run['knn']:.3f} | {100 * run['knn_gain']:+.1f} | {run['linear']:.3f} | {100 * run['linear_gain']:+.1f} | "
            f"{run['images_per_s']:.1f} | {run['seconds'] / 60:.1f} | {loss[0]:.2f} → {loss[-1]:.2f} | {rank[0]:.1f} → {rank[-1]:.1f} |"
        )
    return rows


def _kills(found: Figures) -> list[str]:
    told = "; ".join(
        f"{name}: {run['kills']} kills, weights {'the same bit for bit' if run['same_weights'] else 'DIFFERENT'}"
        for name, run in found["methods"].items()
    )
    return [f"`edge pretrain` killed with -9 at random moments and resumed, against a run that was not: {told}."]


def _shards(found: Figures) -> list[str]:
    over = ", ".join(f"{name} {value:.1f} times" for name, value in found["loader_over_model"].items())
    memory = [value for _, value in found["resident_mb"]]
    return [
        (
            f"{found['frames']} frames in shards ({found['megabytes']} MB), a pass over {found['frames_seen']} of them on "
            f"{found['cores']} core: first batch {found['first_batch_s']:.1f} s after the process began; views for "
            f"{found['loader_images_per_s']:.0f} images/s, over what the model learns: {over}; memory {min(memory):.0f} to "
            f"{max(memory):.0f} MB, {found['growth_mb_after_a_fifth']:+.1f} MB over the last four fifths."
        )
    ]


def _lightly(found: Figures) -> list[str]:
    medians = {name: statistics.median(values) for name, values in found["images_per_s"].items()}
    told = ", ".join(f"{name} {value:.1f} images/s" for name, value in medians.items())
    return [
        (
            f"SimCLR on {found['model']}'s backbone, {found['imgsz']} px, batch {found['batch']}, {found['precision']}, "
            f"{found['threads']} threads, in turns, what starting costs taken off, median of {len(found['images_per_s']['edgeloop'])}: "
            f"{told}; ratio {found['ratio']:.2f}."
        )
    ]


def _memory(found: Figures) -> list[str]:
    whole = found["median"]["whole batch"]
    told = "; ".join(
        f"{name} {each['over_start_mb']} MB, {each['images_per_s'] / whole['images_per_s']:.2f} of the rate"
        for name, each in found["median"].items()
    )
    return [
        (
            f"Memory for {found['method']} on {found['model']}'s {found['part']}, {found['imgsz']} px, batch {found['batch']}, over the "
            f"{found['start_mb']} MB of a run of two small images, in turns, median of {len(found['runs']['whole batch'])}: {told}."
        )
    ]


def _few_labels(found: Figures) -> list[str]:
    told = []
    for variant in dict.fromkeys(run["variant"] for run in found["runs"]):
        gains = [run["over_neither"] for run in found["runs"] if run["variant"] == variant]
        if any(gain["map50_95"] for gain in gains):
            points = [100 * gain["map50_95"] for gain in gains]
            f1 = 100 * sum(gain["f1"] for gain in gains) / len(gains)
            told.append(
                f"`{variant}` {sum(points) / len(points):+.1f} points of mAP50-95 ({min(points):+.1f} to {max(points):+.1f}, "
                f"{sum(point > 0 for point in points)} of {len(points)} runs better) and {f1:+.1f} of F1"
            )
    fractions = sorted({run["fraction"] for run in found["runs"]})
    return [
        (
            f"Sparing the layers below, from COCO weights with {', '.join(f'{100 * each:g}' for each in fractions)} % of the labels of "
            f"{', '.join(sorted({run['set'] for run in found['runs']}))}, over runs with neither: {'; '.join(told)}."
        )
    ]


_TELL: dict[str, Callable[[Figures], list[str]]] = {
    "methods": _methods,
    "kill_pretrain": _kills,
    "shards": _shards,
    "lightly_train": _lightly,
    "memory": _memory,
    "few_label_defaults": _few_labels,
}
