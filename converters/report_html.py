"""report.html: the verdict first, then what it rests on. It shows report.json's numbers, rounded, and nothing else."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from converters.gate import Bars
from converters.html_page import figure, page, picture, table
from converters.report_charts import is_preferred
from converters.report_comparison import SideBySide
from converters.report_data import CalibrationTold, ComparisonTold, Int8Told, Report
from runtime.device import Device
from runtime.manifest import Parity

_NO_CHARTS = "Charts are left out: matplotlib is not installed. It comes with: pip install 'edgeloop[convert]'"


def html_of(report: Report, charts: Mapping[str, str] | None, pictures: Sequence[SideBySide]) -> str:
    """The page.

    Args:
        report: what to tell.
        charts: SVG by name, see `charts_of`; with None, the page says which extra gives them.
        pictures: the worst frames, the worst first.
    """
    parts = [f"<h1>{html.escape(report.model)}</h1>", _verdict(report), "" if charts is not None else _paragraph(_NO_CHARTS)]
    charts = charts or {}
    if report.bars:
        parts += ["<h2>Measurements</h2>", _measurements(report, report.bars), _chart(charts, "pareto", _PARETO)]
    for family, told in report.int8.items():
        parts += [f"<h2>INT8 for {html.escape(family)}, layer by layer</h2>"]
        parts += [_int8_verdict(told), _chart(charts, f"sensitivity_{family}", _SENSITIVITY), _int8_tables(told)]
    if report.comparison:
        parts += ["<h2>Where INT8 and FP32 differ most</h2>", _worst(report.comparison, pictures)]
        told_scores = _SCORES.format(matched=report.comparison.matched, shown=len(report.comparison.scores))
        parts += ["<h2>Scores</h2>", _paragraph(told_scores), _chart(charts, "scores", "")]
    if report.precision_recall:
        parts += ["<h2>Precision against recall</h2>", _chart(charts, "precision_recall", _CURVES)]
    if report.calibration:
        parts += ["<h2>Calibration</h2>", _calibration(report.calibration, charts)]
    parts += ["<h2>Files and device</h2>", _files(report), _device(report.device), _classes(report)]
    return page(report.model, "".join(parts))


_PARETO = (
    "Up and left is better. The star is preferred, hollow points are refused, the dashed line is what nothing beats in both. "
    "Grey points ran a TensorRT file on ONNX Runtime: their accuracy counts, their time says nothing of TensorRT."
)
_SENSITIVITY = (
    "How much closer to FP32's detections the model comes when one stretch of layers alone returns to float: "
    "a positive gain is closer, 0 means that the stretch is harmless. Orange stretches hold layers that were returned."
)
_SCORES = "{matched} boxes that both sides have, {shown} of them drawn. On the diagonal the score is the same."
_CURVES = "At IoU .50, the boxes of all classes pooled, interpolated."


def _verdict(report: Report) -> str:
    preferred, device = report.preferred, report.device
    told = f"<strong>{html.escape(f'{preferred.precision.upper()} on {preferred.engine}')}</strong>"
    return f"<p>Preferred: {told}. {html.escape(preferred.reason)}.</p>" + _paragraph(f"Measured on {device.cpu}.")


def _measurements(report: Report, bars: Bars) -> str:
    labeled = any(row.labeled for row in report.measurements)
    head = [
        "precision",
        "form",
        "engine",
        "batch",
        "verdict",
        "p50 ms",
        "p99 ms",
        "F1 vs FP32",
        "mean IoU",
        "score shift",
        "flips",
    ]
    head += ["F1", "F1 drop", "mAP50-95", "its drop", "95 % interval"] if labeled else []
    rows, kinds = [_bar_cells(bars, labeled)], ["bar"]
    for row in report.measurements:
        rows.append([*_cells(row), *(_labeled_cells(row) if labeled else [])])
        kinds.append("bad" if row.refused else "best" if is_preferred(row, report) else "")
    told = (
        f"{report.gate_frames} frames that did not calibrate{', with labels' if labeled else ''}. At least {bars.boxes} boxes must be "
        f"there to compare, and INT8 or FP16 must be {bars.speedup:g} times as fast as the fastest FP32 to be worth it."
    )
    refused = [
        _paragraph(f"Refused: {row.precision} ({row.form}) on {row.engine}, batch {row.batch}: {row.refused}.", "bad")
        for row in report.measurements
        if row.refused
    ]
    return table(rows, head, kinds) + "".join(refused) + _paragraph(told)


def _bar_cells(bars: Bars, labeled: bool) -> list[str]:
    cells = ["bar", *[""] * 6, f"≥ {bars.agreement:g}", f"≥ {bars.mean_iou:g}", f"± {bars.score_shift:g}", ""]
    return [*cells, *(["", f"≤ {bars.f1_drop:g}", "", f"≤ {bars.map_drop:g}", ""] if labeled else [])]


def _cells(row: Parity) -> list[str]:
    return [
        row.precision, row.form, f"{row.engine}{' (proxy)' if row.is_proxy else ''}", str(row.batch),
        "refused" if row.refused else "holds", f"{row.latency_p50_ms:.2f}", f"{row.latency_p99_ms:.2f}",
        f"{row.f1_against_fp32:.4f}", f"{row.mean_iou:.4f}", f"{row.mean_score_shift:+.4f}", str(row.class_flips),
    ]  # fmt: skip


def _labeled_cells(row: Parity) -> list[str]:
    told = row.labeled
    if told is None:
        return [""] * 5
    low, high = told.map50_95_drop_interval
    interval = f"{low:+.4f}\u00a0to\u00a0{high:+.4f}" if (low, high) != (told.map50_95_drop,) * 2 else ""  # not resampled
    return [f"{told.f1:.4f}", f"{told.f1_drop:+.4f}", f"{told.map50_95:.4f}", f"{told.map50_95_drop:+.4f}", interval]


def _int8_verdict(told: Int8Told) -> str:
    holds = {True: "The gate holds", False: "The gate does not hold: the file is not in the bundle", None: "Not measured"}
    count = sum(layer.precision == "int8" for layer in told.layers)
    returned = f", {len(told.float_layers)} of the rest were returned to float" if told.float_layers else ""
    returned += "; attention's products, and TensorRT's first convolution, are never INT8" if count < len(told.layers) else ""
    return _paragraph(f"{holds[told.holds]}. {count} of {len(told.layers)} layers are INT8{returned}.")


def _int8_tables(told: Int8Told) -> str:
    steps = [
        [", ".join(step.layers), f"{step.gain:+.4f}", "–" if step.cost_ms is None else f"{step.cost_ms:+.2f}",
         f"{step.f1_against_fp32:.4f}", f"{step.mean_score_shift:+.4f}", step.refused or "holds"]
        for step in told.steps
    ]  # fmt: skip
    stretches = [
        [str(place), stretch.layers[0], stretch.layers[-1], str(len(stretch.layers)), stretch.refused or f"{stretch.gain:+.4f}"]
        for place, stretch in enumerate(told.sensitivity, 1)
    ]
    layers = []
    for layer in told.layers:
        place, gain = ("", "") if layer.stretch is None else (stretches[layer.stretch][0], stretches[layer.stretch][-1])
        layers.append([layer.name, layer.precision, place, gain])
    step_head = ["returned to float", "gain alone", "cost ms", "F1 vs FP32", "score shift", "then"]
    return (
        (table(steps, step_head) if steps else "")
        + (_folded("Stretches", table(stretches, ["stretch", "from", "to", "layers", "gain"])) if stretches else "")
        + _folded("All layers", table(layers, ["layer", "precision", "stretch", "its gain"]))
    )


def _worst(told: ComparisonTold, pictures: Sequence[SideBySide]) -> str:
    if told.worst_frames and not pictures:
        return _paragraph("The pictures were left out (--no-pictures); report.json names the frames.")
    if not pictures:
        return _paragraph(f"On no frame do INT8 on {told.engine} and FP32 differ.")
    drawn = []
    for shown in pictures:
        name = shown.frame.name
        pair = picture(shown.fp32, f"{name}: FP32") + picture(shown.int8, f"{name}: INT8")
        caption = f"{name}: FP32 left or above, INT8 right or below; distance {shown.frame.distance:.4f}"
        drawn.append(figure(f'<div class="pair">{pair}</div>', caption))
    intro = (
        f"INT8 ({told.form}) on {told.engine}. Boxes from score {told.lowest_score:.2g} on; the distance is the score that changed, "
        "appeared or vanished, over the frame's score in FP32, which counts as 1 at least."
    )
    return _paragraph(intro) + "".join(drawn)


def _calibration(told: CalibrationTold, charts: Mapping[str, str]) -> str:
    rows = [
        ["frames", str(told.frames)],
        ["drawn by", f"{told.sampler}, seed {told.seed}"],
        ["candidates looked at", str(told.candidates)],
        ["near-duplicates among them", str(told.duplicates)],
        ["farthest candidate, cosine distance", "" if told.radius is None else f"{told.radius:.4f}"],
        ["mean distance", "" if told.mean_distance is None else f"{told.mean_distance:.4f}"],
    ]
    shown = told.map.explained if told.map else 0.0
    caption = f"The candidates' embeddings on their two principal axes, which show {shown:.0%} of the variance."
    return table(rows) + _chart(charts, "calibration", caption)


def _files(report: Report) -> str:
    rows = [[item.file, item.precision, item.form, str(item.batch), str(len(item.float_layers))] for item in report.variants]
    return table(rows, ["file", "precision", "form", "batch", "layers returned to float"])


def _device(device: Device) -> str:
    rows = [["CPU", f"{device.cpu} ({device.machine})"], ["instructions", ", ".join(device.isa)]]
    return table([*rows, *([name, version] for name, version in sorted(device.engines.items()))])


def _classes(report: Report) -> str:
    return _folded(f"{len(report.classes)} classes", _paragraph(", ".join(report.classes))) if report.classes else ""


def _chart(charts: Mapping[str, str], name: str, caption: str) -> str:
    return figure(charts[name], caption) if name in charts else ""


def _paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"
