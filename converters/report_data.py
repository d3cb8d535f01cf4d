"""What a conversion found, and the part of it that the report tells, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx

from calibration.accuracy import precision_at_recalls
from calibration.coverage_map import CoverageMap
from calibration.sampler import CalibrationFrames
from converters.fallback import Step
from converters.gate import Bars, Candidate, Gate, Run
from converters.int8_search import Int8Search
from converters.layers import int8_layers, layers_of
from converters.qdq_from_onnx import Family
from converters.report_comparison import Comparison, WorstFrame, some_of
from converters.sensitivity import Sensitivity
from runtime.device import Device
from runtime.manifest import Form, Parity, Precision, Preferred, Variant
from runtime.postprocess import Thresholds


@dataclass(frozen=True)
class Findings:
    """Everything that the report tells.

    Attributes:
        name: of the model.
        fp32: the float graph.
        gate: frames, thresholds and bars; None where nothing could be measured.
        runs: detections and times of every file under every engine, interleaved in one run.
        rows: the comparison with FP32, of all attempts.
        preferred: what follows from it.
        drawn: the calibration frames; None without a pool.
        searches: what was tried for INT8, by family of engines.
        variants: the files in the bundle.
        device: where it was measured.
    """

    name: str
    fp32: onnx.ModelProto
    gate: Gate | None
    runs: Mapping[Candidate, Run]
    rows: tuple[Parity, ...]
    preferred: Preferred
    drawn: CalibrationFrames | None
    searches: Mapping[Family, Int8Search]
    variants: tuple[Variant, ...]
    device: Device

    @property
    def all_runs(self) -> dict[Candidate, Run]:
        """With those of INT8 files that were refused and are not in the bundle."""
        refused = [search.runs for search in self.searches.values() if search.holds is False]
        return {**self.runs, **{candidate: run for runs in refused for candidate, run in runs.items()}}


@dataclass(frozen=True, slots=True)
class CalibrationTold:
    """See `calibration.sampler.CalibrationFrames`; `frames` is how many calibrate."""

    sampler: str
    seed: int
    frames: int
    candidates: int
    duplicates: int
    radius: float | None
    mean_distance: float | None
    map: CoverageMap | None


@dataclass(frozen=True, slots=True)
class LayerTold:
    """One layer of an INT8 file; `stretch` is its place in `sensitivity`, None if it was never quantised or ranked."""

    name: str
    precision: Literal["int8", "float"]
    stretch: int | None


@dataclass(frozen=True, slots=True)
class Int8Told:
    """See `converters.int8_search.Int8Search`; `layers` are those of the last file tried."""

    holds: bool
    float_layers: tuple[str, ...]
    steps: tuple[Step, ...]
    sensitivity: tuple[Sensitivity, ...]
    layers: tuple[LayerTold, ...]


@dataclass(frozen=True, slots=True)
class ComparisonTold:
    """One INT8 run looked at closely, see `converters.report_comparison.Comparison`.

    Attributes:
        form, engine: of the run.
        lowest_score: boxes below it were left out.
        matched: how many boxes both sides have.
        scores: FP32's and INT8's score of up to 500 of them.
        worst_frames: those that differ most, the worst first.
    """

    form: Form
    engine: str
    lowest_score: float
    matched: int
    scores: tuple[tuple[float, float], ...]
    worst_frames: tuple[WorstFrame, ...]


@dataclass(frozen=True, slots=True)
class CurveTold:
    """Precision at recall 0, .01 … 1 of one file under one engine; IoU .50, classes pooled."""

    precision: Precision
    form: Form
    engine: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """report.json."""

    model: str
    classes: tuple[str, ...]
    preferred: Preferred
    device: Device
    gate_frames: int
    thresholds: Thresholds | None
    bars: Bars | None
    measurements: tuple[Parity, ...]
    variants: tuple[Variant, ...]
    calibration: CalibrationTold | None
    int8: dict[Family, Int8Told]
    comparison: ComparisonTold | None
    precision_recall: tuple[CurveTold, ...]


def report_of(findings: Findings, comparison: Comparison | None, worst: tuple[WorstFrame, ...]) -> Report:
    """What the report tells of `findings`; the comparison and the worst frames come from `converters.report_comparison`."""
    gate = findings.gate
    return Report(
        model=findings.name,
        classes=gate.names if gate else (),
        preferred=findings.preferred,
        device=findings.device,
        gate_frames=len(gate.frames) if gate else 0,
        thresholds=gate.thresholds if gate else None,
        bars=gate.bars if gate else None,
        measurements=findings.rows,
        variants=findings.variants,
        calibration=_calibration(findings.drawn) if findings.drawn else None,
        int8={family: _int8(findings.fp32, search) for family, search in findings.searches.items()},
        comparison=_comparison(comparison, worst) if comparison else None,
        precision_recall=_curves(findings, gate) if gate and gate.frames.labeled else (),
    )


def _calibration(drawn: CalibrationFrames) -> CalibrationTold:
    return CalibrationTold(
        drawn.sampler, drawn.seed, len(drawn.calibration), drawn.candidates, drawn.duplicates,
        _rounded(drawn.radius), _rounded(drawn.mean_distance), drawn.map,
    )  # fmt: skip


def _int8(fp32: onnx.ModelProto, search: Int8Search) -> Int8Told:
    quantised = int8_layers(search.file.model)
    stretch_of = {name: place for place, stretch in enumerate(search.sensitivity) for name in stretch.layers}
    layers = tuple(
        LayerTold(layer.name, "int8" if layer.name in quantised else "float", stretch_of.get(layer.name))
        for layer in layers_of(fp32)
    )
    return Int8Told(search.holds, search.file.float_layers, search.steps, search.sensitivity, layers)


def _comparison(comparison: Comparison, worst: tuple[WorstFrame, ...]) -> ComparisonTold:
    pairs = comparison.score_pairs()
    candidate = comparison.candidate
    return ComparisonTold(candidate.form, candidate.engine, comparison.lowest_score, len(pairs), some_of(pairs), worst)


def _curves(findings: Findings, gate: Gate) -> tuple[CurveTold, ...]:
    truths = [frame.truth for frame in gate.frames if frame.truth is not None]
    curves = []
    for candidate, run in findings.all_runs.items():
        if candidate.batch == 1 and (candidate.is_reference or candidate.precision == "int8"):
            values = precision_at_recalls(list(zip(truths, run.detections, strict=True)))
            told = tuple(np.round(values, 4).tolist())
            curves.append(CurveTold(candidate.precision, candidate.form, candidate.engine, told))
    return tuple(curves)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
