"""Does the deployed graph say what the original says? Compared box by box, whatever their order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.graph_passes import IMAGES
from converters.imported import ImportedModel
from converters.predictions import RawPredictions
from converters.sessions import Session, open_session

MAX_BOX_PX = 0.5
MAX_SCORE = 1e-3
_SLACK = 0.05  # the original's pairs that far below the graph's last score cannot be any of its rows
_CHUNK = 128  # rows compared at once, against some ten thousand


@dataclass(frozen=True)
class ExportParity:
    """How far the deployed graph is from the original.

    Attributes:
        max_box_px: largest difference of a box edge, letterbox pixels.
        max_score: largest difference of a score.
        boxes: how many were compared.
        canvases: on how many images.
    """

    max_box_px: float
    max_score: float
    boxes: int
    canvases: int


def check_export(imported: ImportedModel, canvases: Iterable[NDArray[np.uint8]]) -> ExportParity:
    """Runs the deployed graph, which must be of batch 1, and the original on the same canvases.

    Every (box, score, class) that leaves the graph must be in the original, and no pair of the original that scores
    above the graph's last one may be missing. Scores closer than the tolerance to the last one are a tie, of which
    either side may have taken another part.

    Args:
        imported: the graph and the original's own predictions.
        canvases: uint8 (1, h, w, 3) BGR letterboxed.

    Raises:
        ConversionError: further apart than 0.5 pixels or 0.001 in score, or not finite.
    """
    session = open_session(imported.graph)
    tally = ExportParity(0.0, 0.0, 0, 0)
    for canvas in canvases:
        found = _found(session, canvas)
        last = float(found.scores.min(initial=1.0))
        expected = _expected(imported.reference(canvas), last - _SLACK)
        wanted = found if expected.complete else found.above(last + MAX_SCORE)
        differences = _furthest(wanted, expected), _furthest(expected.above(last + MAX_SCORE), found)
        px, score = np.maximum(*differences)
        tally = ExportParity(
            max(tally.max_box_px, float(px)), max(tally.max_score, float(score)), tally.boxes + len(wanted.scores), tally.canvases + 1
        )  # fmt: skip
    if tally.max_box_px > MAX_BOX_PX or tally.max_score > MAX_SCORE:
        raise ConversionError(
            f"the graph of {imported.name} differs from the original by {tally.max_box_px:.3g} pixels and {tally.max_score:.3g} "
            f"in score, allowed are {MAX_BOX_PX} and {MAX_SCORE}; if --head or --imgsz was given, check it, else report the model"
        )
    return tally


@dataclass(frozen=True, eq=False)
class _Rows:
    """(box, score, class) triples: (n, 4), (n,), (n,)."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    classes: NDArray[np.integer]
    complete: bool = True

    def above(self, score: float) -> _Rows:
        kept = self.scores > score
        return _Rows(self.boxes[kept], self.scores[kept], self.classes[kept], self.complete)


def _found(session: Session, canvas: NDArray[np.uint8]) -> _Rows:
    boxes, scores, classes = (values[0] for values in session.run(("boxes", "scores", "classes"), {IMAGES: canvas}))
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ConversionError("the exported graph gives NaN or infinity; check the weights, or train the model again")
    return _Rows(boxes, scores, classes)


def _expected(raw: RawPredictions, at_least: float) -> _Rows:
    anchor, class_id = np.nonzero(raw.scores >= at_least)
    return _Rows(raw.boxes_xyxy[anchor], raw.scores[anchor, class_id], class_id, raw.complete)


def _furthest(wanted: _Rows, among: _Rows) -> tuple[float, float]:
    """The largest distances, in pixels and in score, from a wanted row to the nearest of its class; infinite if none is."""
    worst = np.zeros(2)
    for class_id in np.unique(wanted.classes):
        mine, theirs = np.flatnonzero(wanted.classes == class_id), np.flatnonzero(among.classes == class_id)
        if not len(theirs):
            return np.inf, np.inf
        for start in range(0, len(mine), _CHUNK):
            rows = mine[start : start + _CHUNK]
            px = np.abs(wanted.boxes[rows, None] - among.boxes[None, theirs]).max(axis=2)
            score = np.abs(wanted.scores[rows, None] - among.scores[None, theirs])
            nearest = np.maximum(px / MAX_BOX_PX, score / MAX_SCORE).argmin(axis=1)
            pick = np.arange(len(rows)), nearest
            worst = np.maximum(worst, (px[pick].max(), score[pick].max()))
    return float(worst[0]), float(worst[1])
