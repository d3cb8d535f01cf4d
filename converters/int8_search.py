"""From FP32 to the INT8 file that one family of engines runs both fast and right on this device, or the reason why none is.

What works differs from model to model and from CPU to CPU, so nothing is assumed: the usual file is measured first, then one
with other ranges, on CPUs one with 7-bit weights (without VNNI 8-bit products overflow), then layers return to float. The
search looks at calibration frames; the gate's frames and labels are kept for the verdict, and only say whether a file holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.gate_frames import GateFrames
from converters.fallback import Quantised, Step, fall_back
from converters.gate import Candidate, Gate, Run, judge, run_candidates
from converters.model_files import ModelFile, shipped_files
from converters.polish import polished_layers
from converters.qdq_from_onnx import Family, median_of_extremes, qdq_from_onnx
from converters.quantizer_passes import with_float_layers
from converters.sensitivity import Sensitivity, SensitivityScan
from runtime.manifest import Form, Parity
from runtime.progress import Report

Recipe = Literal["usual", "ranges by median", "7-bit weights"]

# Tried in this order until one holds. The median of every frame's extremes lost less than their mean, the usual recipe, on
# yolov8n and more on yolo11n (benchmarks/results/range_estimators.json).
_RECIPES: dict[Family, tuple[Recipe, ...]] = {
    "cpu": ("usual", "ranges by median", "7-bit weights"),
    "tensorrt": ("usual", "ranges by median"),
}


@dataclass(frozen=True)
class Calibrated:
    """Everything that quantising takes.

    Attributes:
        fp32: the float graph.
        batches: calibration input, uint8 (1, h, w, 3); iterated more than once.
        count: how many there are.
        frames: the same, for the search to look at.
        folder: where files go.
        report: told each step.
        unread: forms that the target does not read.
    """

    fp32: onnx.ModelProto
    batches: Iterable[NDArray[np.uint8]]
    count: int
    frames: GateFrames
    folder: Path
    report: Report
    unread: frozenset[Form] = frozenset()


@dataclass(frozen=True)
class Int8Search:
    """What was tried for one family.

    Attributes:
        file: the INT8 file that holds, or the last one tried.
        holds: whether it may be shipped, in all its forms.
        attempts: every measurement on the way.
        runs: of the file before layers returned to float, under each engine of the family.
        steps: of the fallback, if there was one.
        sensitivity: what each stretch of layers gains when it alone is float.
        skipped: why an engine did not run the file, if one did not.
    """

    file: ModelFile
    holds: bool
    attempts: tuple[Parity, ...] = ()
    runs: dict[Candidate, Run] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()
    skipped: tuple[str, ...] = ()


def search_int8(family: Family, calibrated: Calibrated, gate: Gate, floats: dict[Candidate, Run]) -> Int8Search:
    """Quantises for `family` and changes the file until the gate holds.

    Args:
        family: of engines.
        calibrated: graph and frames.
        gate: the bars, and the frames that decide.
        floats: FP32's runs over the gate's frames, the reference's among them.
    """
    slowest_ms = _slowest_worth_ms(family, floats, gate)
    reference = next(candidate for candidate in floats if candidate.is_reference)
    measure = Measure(calibrated, gate, {reference: floats[reference]}, slowest_ms)
    tried, attempts = _first_try(family, measure)
    kept = Int8Search(tried.file, measure.holds(tried), attempts, tried.runs, skipped=tried.skipped)
    if not tried.rows or tried.rows[0].boxes < gate.bars.boxes:  # nothing to compare: no other file can mend that
        return kept
    quantised = Quantised(calibrated.fp32, tried.file.model, tried.engine, tried.file.form)
    scan = SensitivityScan(quantised.fp32, quantised.int8, quantised.engine, calibrated.frames, gate.thresholds.iou)
    return polished(kept, quantised, scan, measure) if kept.holds else _mended(kept, quantised, scan, measure)


@dataclass(frozen=True)
class _Tried:
    """A file, and how it did in all its forms under all engines of its family."""

    file: ModelFile
    runs: dict[Candidate, Run]
    rows: tuple[Parity, ...]
    skipped: tuple[str, ...]

    @property
    def agreement(self) -> float:
        """The best of its engines."""
        return max((row.f1_against_fp32 for row in self.rows), default=0.0)

    @property
    def engine(self) -> str:
        """The fastest that runs it right; where none does, the fastest."""
        return min(self.rows, key=lambda row: (bool(row.refused), row.latency_p50_ms)).engine


@dataclass(frozen=True)
class Measure:
    """How a file is made and judged."""

    calibrated: Calibrated
    gate: Gate
    reference: dict[Candidate, Run]
    slowest_ms: float

    def quantised(self, family: Family, recipe: Recipe) -> _Tried:
        """A new file, measured."""
        told, given = f", {recipe}" if recipe != "usual" else "", self.calibrated
        given.report(f"quantising for {family}{told} with {given.count} frames")
        model = qdq_from_onnx(
            given.fp32, given.batches, given.count, family, seven_bit_weights=recipe == "7-bit weights",
            ranges=median_of_extremes() if recipe == "ranges by median" else None,
        )  # fmt: skip
        return self.tried(ModelFile.write(given.folder, "int8", family, model))

    def tried(self, file: ModelFile) -> _Tried:
        """A file, measured in every form that is shipped of it."""
        skipped: list[str] = []
        shipped = [made for made in shipped_files(file) if made.form not in self.calibrated.unread]
        candidates = [candidate for made in shipped for candidate in made.candidates()]
        runs = run_candidates(candidates, self.gate, skipped)
        for reason in skipped:
            self.calibrated.report(f"not measured: {reason}")
        rows = judge({**self.reference, **runs}, self.gate, replicates=0)[1:]
        return _Tried(file, runs, tuple(rows), tuple(skipped))

    def holds(self, tried: _Tried) -> bool:
        """Whether a file may be shipped.

        TensorRT: whether every form is right. CPUs: whether some engine runs it right and fast enough; where none is fast
        enough, whether one runs it right.
        """
        if tried.file.form != "cpu":
            return bool(tried.rows) and all(not row.refused for row in tried.rows)
        fast = [row for row in tried.rows if row.latency_p50_ms <= self.slowest_ms]
        return any(not row.refused for row in fast or tried.rows)


def _first_try(family: Family, measure: Measure) -> tuple[_Tried, tuple[Parity, ...]]:
    """The first recipe's file that holds, else the one that agrees best; and all that was measured."""
    usual, *others = _RECIPES[family]
    best = measure.quantised(family, usual)
    attempts = best.rows
    for recipe in others:
        if measure.holds(best) or not best.rows or best.rows[0].boxes < measure.gate.bars.boxes:
            break
        tried = measure.quantised(family, recipe)
        attempts += tried.rows
        if measure.holds(tried) or tried.agreement > best.agreement:
            best = tried
    return replace(best, file=best.file.again()), attempts  # a later one was written to the same place


def _mended(kept: Int8Search, quantised: Quantised, scan: SensitivityScan, measure: Measure) -> Int8Search:
    report, (reference,) = measure.calibrated.report, measure.reference.values()
    failed = min((row for row in kept.attempts if row.refused), key=lambda row: row.engine != quantised.engine)
    report(f"the gate does not hold on {failed.engine}: {failed.refused}; looking for the layers that INT8 hurts")
    found = fall_back(quantised, scan, reference, measure.gate, measure.slowest_ms, report)
    file = ModelFile.write(measure.calibrated.folder, "int8", quantised.form, found.model, 1, found.float_layers)
    return replace(kept, file=file, holds=found.holds, steps=found.steps, sensitivity=found.sensitivity)


def polished(kept: Int8Search, quantised: Quantised, scan: SensitivityScan, measure: Measure) -> Int8Search:
    """With some layers in float, if the whole gate holds then as well."""
    kept = replace(kept, sensitivity=tuple(scan.stretches()))
    returned = polished_layers(quantised, scan, kept.sensitivity, measure.calibrated.report)
    if not returned:
        return kept
    model = with_float_layers(quantised.int8, quantised.fp32, returned)
    names = [layer.name for layer in returned]
    tried = measure.tried(ModelFile.write(measure.calibrated.folder, "int8", quantised.form, model, 1, names))
    if measure.holds(tried):
        return replace(kept, file=tried.file, attempts=(*kept.attempts, *tried.rows))
    measure.calibrated.report("with these layers in float the gate does not hold; they stay in INT8")
    return replace(kept, file=kept.file.again(), attempts=(*kept.attempts, *tried.rows))


def _slowest_worth_ms(family: Family, floats: dict[Candidate, Run], gate: Gate) -> float:
    """How slow an INT8 file may be to be worth having here; a proxy's time says nothing."""
    if family == "tensorrt":
        return float("inf")
    fastest = min(float(np.median(run.times_s)) for run in floats.values())
    return fastest * 1e3 / gate.bars.speedup
