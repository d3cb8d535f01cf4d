"""From FP32 to the INT8 file that one family of engines runs both fast and right on this device, or the reason why none is.

What works differs from CPU to CPU, so nothing is assumed: the usual file is measured first, then one with 7-bit weights
(without VNNI 8-bit products overflow), then layers return to float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from converters.fallback import Quantised, Step, fall_back
from converters.gate import Candidate, Gate, Run, judge, run_candidates
from converters.model_files import ModelFile
from converters.polish import Polish
from converters.qdq_from_onnx import Family, qdq_from_onnx
from converters.quantizer_passes import with_float_layers
from converters.sensitivity import Sensitivity, SensitivityScan
from runtime.manifest import Form, Parity

Report = Callable[[str], None]


@dataclass(frozen=True)
class Calibrated:
    """Everything that quantising takes.

    Attributes:
        fp32: the float graph.
        batches: calibration input, uint8 (1, h, w, 3); iterated more than once.
        count: how many there are.
        folder: where files go.
        report: told each step.
    """

    fp32: onnx.ModelProto
    batches: Iterable[NDArray[np.uint8]]
    count: int
    folder: Path
    report: Report


@dataclass
class Int8Search:
    """What was tried for one family.

    Attributes:
        file: the INT8 file that holds, or the last one tried.
        holds: whether some engine of the family may run it; None where there was nothing to measure on.
        attempts: every measurement on the way.
        runs: of the file before layers returned to float, under each engine of the family.
        steps: of the fallback, if there was one.
        sensitivity: what each stretch of layers gains when it alone is float.
    """

    file: ModelFile
    holds: bool | None = None
    attempts: list[Parity] = field(default_factory=list)
    runs: dict[Candidate, Run] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    sensitivity: tuple[Sensitivity, ...] = ()


def search_int8(family: Family, calibrated: Calibrated, gate: Gate | None, floats: dict[Candidate, Run]) -> Int8Search:
    """Quantises for `family` and, where there is a gate, changes the file until the gate holds.

    Args:
        family: of engines.
        calibrated: graph and frames.
        gate: None gives the first file, unmeasured.
        floats: FP32's runs over the gate's frames, the reference's among them.
    """
    search = Int8Search(_quantise(family, calibrated, seven_bit_weights=False))
    if gate is None:
        return search
    search.runs, rows = _measure(search.file, gate, floats)
    search.attempts += rows
    slowest_ms = _slowest_worth_ms(family, floats, gate)
    search.holds = _holds(rows, slowest_ms)
    if not rows or rows[0].boxes < gate.bars.boxes:  # nothing to compare: no other file can mend that
        return search
    if family == "cpu" and not search.holds:
        other = _quantise(family, calibrated, seven_bit_weights=True)
        runs, again = _measure(other, gate, floats)
        search.attempts += again
        if _holds(again, slowest_ms) or _best_agreement(again) > _best_agreement(rows):
            search.file, search.holds, search.runs, rows = other, _holds(again, slowest_ms), runs, again
        else:
            search.file = search.file.again()  # the other one was written to the same place
    if not search.holds:
        _fall_back(search, rows, calibrated, gate, floats)
    else:
        sound = [row for row in rows if not row.refused]
        reference = next(run for candidate, run in floats.items() if candidate.is_reference)
        _polish(search, min(sound, key=lambda row: row.latency_p50_ms).engine, calibrated, gate, reference)
    return search


def _quantise(family: Family, calibrated: Calibrated, *, seven_bit_weights: bool) -> ModelFile:
    calibrated.report(f"quantising for {family}{', 7-bit weights' if seven_bit_weights else ''} with {calibrated.count} frames")
    model = qdq_from_onnx(calibrated.fp32, calibrated.batches, calibrated.count, family, seven_bit_weights=seven_bit_weights)
    form: Form = "cpu" if family == "cpu" else "tensorrt"
    return ModelFile.write(calibrated.folder, "int8", form, model)


def _measure(file: ModelFile, gate: Gate, floats: dict[Candidate, Run]) -> tuple[dict[Candidate, Run], list[Parity]]:
    runs = run_candidates(file.candidates(), gate, [])
    reference = {candidate: run for candidate, run in floats.items() if candidate.is_reference}
    return runs, [row for row in judge({**reference, **runs}, gate, replicates=0) if row.precision == "int8"]


def _holds(rows: Sequence[Parity], slowest_ms: float) -> bool:
    """Whether some engine runs the file right and fast enough; where none is fast enough, whether one runs it right."""
    fast = [row for row in rows if row.latency_p50_ms <= slowest_ms]
    return any(not row.refused for row in fast or rows)


def _best_agreement(rows: Sequence[Parity]) -> float:
    return max((row.f1_against_fp32 for row in rows), default=0.0)


def _fall_back(
    search: Int8Search, rows: Sequence[Parity], calibrated: Calibrated, gate: Gate, floats: dict[Candidate, Run]
) -> None:
    engine = min(rows, key=lambda row: row.latency_p50_ms).engine
    reference = next(run for candidate, run in floats.items() if candidate.is_reference)
    form = search.file.form
    slowest_ms = _slowest_worth_ms("cpu" if form == "cpu" else "tensorrt", floats, gate)
    calibrated.report(f"the gate does not hold on {engine}: {rows[0].refused}; looking for the layers that INT8 hurts")
    found = fall_back(
        Quantised(calibrated.fp32, search.file.model, engine, form), reference, gate, slowest_ms, calibrated.report
    )
    search.steps, search.holds, search.sensitivity = found.steps, found.holds, found.sensitivity
    search.file = ModelFile.write(calibrated.folder, "int8", form, found.model, 1, found.float_layers)


def _polish(search: Int8Search, engine: str, calibrated: Calibrated, gate: Gate, reference: Run) -> None:
    scan = SensitivityScan(calibrated.fp32, search.file.model, engine, gate)
    search.sensitivity = tuple(scan.stretches())
    quantised = Quantised(calibrated.fp32, search.file.model, engine, search.file.form)
    returned = Polish(quantised, scan, reference, gate, calibrated.report).layers(search.sensitivity)
    if returned:
        model = with_float_layers(search.file.model, calibrated.fp32, returned)
        search.file = ModelFile.write(calibrated.folder, "int8", search.file.form, model, 1, [layer.name for layer in returned])


def _slowest_worth_ms(family: Family, floats: dict[Candidate, Run], gate: Gate) -> float:
    """How slow an INT8 file may be to be worth having here; a proxy's time says nothing."""
    if family == "tensorrt":
        return float("inf")
    fastest = min(float(np.median(run.times_s)) for run in floats.values())
    return fastest * 1e3 / gate.bars.speedup
