"""Does the INT8 file still see what FP32 saw? Measured without labels, per engine, on frames that were not calibrated on.

The same Q/DQ file can be right on one engine and ruined on another (benchmarks/results/coco_parity.json), so every
engine that could run it is measured by itself, interleaved on the same frames.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.backends import open_installed, open_model, warm
from runtime.bundle import Parity, Preferred
from runtime.detections import Detections, box_iou
from runtime.metrics import percentiles
from runtime.postprocess import Thresholds, detections_from_outputs
from runtime.preprocess import Letterbox

REFERENCE = ("fp32", "onnxruntime")
# INT8 that changes more than one box in ten, or moves scores by more than 0.03, is not the same model any more.
MIN_F1_AGAINST_FP32 = 0.90
MAX_SCORE_SHIFT = 0.03
MIN_BOXES = 20  # agreement on fewer is luck: a model that finds nothing agrees with every other
_MATCH_IOU = 0.5


@dataclass
class _Tally:
    """Running sums of one candidate against the reference."""

    matched: int = 0
    found: int = 0
    expected: int = 0
    iou: float = 0.0
    shift: float = 0.0
    flips: int = 0
    times_s: list[float] = field(default_factory=list)

    def compare(self, found: Detections, reference: Detections) -> None:
        """Matches greedily by falling score, whatever the class; a class that differs is a flip, not a match."""
        self.found, self.expected = self.found + len(found), self.expected + len(reference)
        if not len(found) or not len(reference):
            return
        iou = box_iou(found.xyxy, reference.xyxy)
        for row in np.argsort(-found.confidence, kind="stable"):
            same = iou[row] * (reference.class_id == found.class_id[row])
            column = int(same.argmax()) if same.max() >= _MATCH_IOU else int(iou[row].argmax())
            if iou[row, column] < _MATCH_IOU:
                continue
            if reference.class_id[column] != found.class_id[row]:
                self.flips += 1
            else:
                self.matched += 1
                self.iou += float(iou[row, column])
                self.shift += float(found.confidence[row] - reference.confidence[column])
            iou[:, column] = 0

    def parity(self, precision: str, engine: str, frames: int) -> Parity:
        f1 = 2 * self.matched / (self.found + self.expected) if self.found + self.expected else 1.0
        matched, times = max(self.matched, 1), percentiles(self.times_s)
        return Parity(
            precision=precision, engine=engine, frames=frames, boxes=self.expected, f1_against_fp32=round(f1, 4),
            mean_iou=round(self.iou / matched, 4), mean_score_shift=round(self.shift / matched, 4), class_flips=self.flips,
            latency_p50_ms=round(times.p50_ms, 3), latency_p99_ms=round(times.p99_ms, 3),
        )  # fmt: skip


def measure_parity(models: Mapping[str, Path], canvases: Iterable[NDArray[np.uint8]], thresholds: Thresholds) -> list[Parity]:
    """Runs every precision under every installed engine on the same canvases.

    Args:
        models: ONNX file of each precision; `fp32` must be among them.
        canvases: uint8 (b, h, w, 3) letterboxed; only row 0 is compared.
        thresholds: those of the release.
    """
    backends = open_installed(models)
    if REFERENCE not in backends:
        backends[REFERENCE] = open_model(REFERENCE[1], models[REFERENCE[0]], REFERENCE[0])  # says what is wrong with it
    tallies = {key: _Tally() for key in backends}
    frames = 0
    for canvas in canvases:
        if not frames:
            for backend in backends.values():
                warm(backend, canvas)
        found = {}
        for key, backend in backends.items():
            start = time.perf_counter()
            outputs = backend.infer(canvas)
            tallies[key].times_s.append(time.perf_counter() - start)
            found[key] = detections_from_outputs(outputs, 0, _identity(canvas), thresholds)
        for key, tally in tallies.items():
            tally.compare(found[key], found[REFERENCE])
        frames += 1
    for backend in backends.values():
        backend.close()
    return [tally.parity(*key, frames) for key, tally in tallies.items()] if frames else []


def prefer(parity: Sequence[Parity]) -> Preferred:
    """The fastest engine and precision that agrees with FP32; FP32 under ONNX Runtime when nothing was measured."""
    if not parity:
        return Preferred(engine=REFERENCE[1], precision="fp32", reason="nothing was measured: no pool, or too few frames in it")
    doubts = {(row.precision, row.engine): _doubt(row) for row in parity}
    sound = [row for row in parity if not doubts[row.precision, row.engine]]
    best = min(sound, key=lambda row: row.latency_p50_ms)
    reason = f"fastest of {len(sound)} that agree with FP32, p50 {best.latency_p50_ms:.1f} ms"
    refused = [f"{precision} on {engine} ({doubt})" for (precision, engine), doubt in doubts.items() if doubt]
    return Preferred(
        engine=best.engine,
        precision=best.precision,
        reason="; refused: ".join([reason, *([", ".join(refused)] if refused else [])]),
    )


def _doubt(row: Parity) -> str:
    """Why a row cannot be trusted; empty when it can. The reference itself always can."""
    if (row.precision, row.engine) == REFERENCE:
        return ""
    if row.boxes < MIN_BOXES and row.precision != REFERENCE[0]:
        return f"only {row.boxes} boxes to compare"
    if row.f1_against_fp32 < MIN_F1_AGAINST_FP32:
        return f"F1 {row.f1_against_fp32:.2f}"
    return f"scores shift by {row.mean_score_shift:+.3f}" if abs(row.mean_score_shift) > MAX_SCORE_SHIFT else ""


def _identity(canvas: NDArray[np.uint8]) -> Letterbox:
    return Letterbox(1.0, 0, 0, (canvas.shape[2], canvas.shape[1]))
