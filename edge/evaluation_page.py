"""The report of `edge evaluate`: one HTML file with tables, the precision-recall curve, confusions and the worst images."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import RECALLS, precision_at_recalls
from calibration.labels import LabeledImage
from converters.html_page import figure, page, picture, svg_of, table
from edge.evaluation import Evaluation
from runtime.detections import Detections
from runtime.draw import annotated
from runtime.images import read_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WORST, _SIDE = 8, 560  # images shown; pixels of their longer side
_MOST_CLASSES = 30  # in the table of confusions


def evaluation_page(found: Evaluation, items: Sequence[LabeledImage], names: Sequence[str], title: str) -> str:
    """The whole document; `items` are the held-out images that `found` rests on."""
    told, parts = found.accuracy, found.breakdown
    low, high = parts.map_interval
    f1_low, f1_high = parts.f1_interval
    summary = (
        f"<p>{told.images} held-out images. mAP50-95 <b>{told.map50_95:.3f}</b> (95 %: {low:.3f} to {high:.3f}), mAP50 "
        f"{told.map50:.3f}; at confidence {told.confidence:g} F1 <b>{told.f1:.3f}</b> (95 %: {f1_low:.3f} to {f1_high:.3f}), "
        f"precision {told.precision:.3f}, recall {told.recall:.3f}.</p>"
    )
    body = [
        f"<h1>{html.escape(title)}</h1>",
        summary,
        "<h2>Classes</h2>",
        table(
            [
                [
                    row.name,
                    str(row.boxes),
                    *(f"{value:.3f}" for value in (row.map50_95, row.map50, row.precision, row.recall, row.f1)),
                ]
                for row in parts.classes
            ],
            ("class", "boxes", "AP50-95", "AP50", "precision", "recall", "F1"),
        ),
        "<h2>Sizes</h2>",
        table(
            [[row.name, str(row.boxes), f"{row.map50_95:.3f}", f"{row.map50:.3f}", f"{row.recall:.3f}"] for row in parts.sizes],
            ("pixels of the box", "boxes", "AP50-95", "AP50", "recall"),
        ),
        "<h2>Precision and recall</h2>",
        figure(_curve(found), "All classes, IoU .50; the point is the deployed threshold."),
        "<h2>Confusions</h2>",
        _confusions(parts.confusion, names),
        "<h2>Worst images</h2>",
        *_worst(found, items, names),
    ]
    return page(title, "".join(body))


def _curve(found: Evaluation) -> str:
    from matplotlib.figure import Figure  # part of the extras train and convert

    drawn = Figure(figsize=(6, 3.6), layout="constrained")
    axes: Axes = drawn.subplots()
    axes.plot(RECALLS, precision_at_recalls(found.pairs))
    axes.plot([found.accuracy.recall], [found.accuracy.precision], "o")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    return svg_of(drawn)


def _confusions(rows: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """The table, or for many classes its largest entries off the diagonal."""
    words = [*names, "nothing"]
    if len(words) <= _MOST_CLASSES:
        lines = [[words[index], *map(str, row)] for index, row in enumerate(rows)]
        return "<p>Rows: what is there. Columns: what was found there.</p>" + table(lines, ("", *words))
    pairs = [
        (count, there, seen) for there, row in enumerate(rows) for seen, count in enumerate(row) if there != seen and count
    ]
    largest = sorted(pairs, reverse=True)[:_MOST_CLASSES]
    return table([[words[there], words[seen], str(count)] for count, there, seen in largest], ("is", "taken for", "boxes"))


def _worst(found: Evaluation, items: Sequence[LabeledImage], names: Sequence[str]) -> list[str]:
    chosen = found.breakdown.worst(_WORST)
    if not chosen:
        return ["<p>No image has a mistake.</p>"]
    parts = []
    for index in chosen:
        truth, seen = found.pairs[index]
        image = read_image(items[index].path)
        sides = [_drawn(image, boxes, names) for boxes in (truth, seen.above(found.accuracy.confidence))]
        name = items[index].path.name
        shown = "".join(picture(side, f"{what}: {name}") for side, what in zip(sides, ("labels", "found"), strict=True))
        caption = f"{name}: {found.breakdown.mistakes[index]} mistakes. Left the labels, right what was found."
        parts.append(figure(f'<div class="pair">{shown}</div>', caption))
    return parts


def _drawn(image: NDArray[np.uint8], boxes: Detections, names: Sequence[str]) -> NDArray[np.uint8]:
    factor = _SIDE / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    scaled = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR), np.uint8)
    return annotated(scaled, Detections(boxes.xyxy * np.float32(factor), boxes.confidence, boxes.class_id), names)
