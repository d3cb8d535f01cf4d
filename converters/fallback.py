"""From an INT8 file that fails the gate to one that holds it, by returning layers to float; or the finding that none does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from converters.gate import Candidate, Gate, Run, judge, run_candidates
from converters.layers import Layer
from converters.model_files import forms_of
from converters.quantizer_passes import with_float_layers
from converters.sensitivity import Sensitivity, SensitivityScan
from runtime.errors import BackendError, first_line
from runtime.manifest import Form, Parity
from runtime.progress import Report

_TO_BLAME = 0.5  # one layer that brings this share of its stretch's gain
MAX_LAYERS = 24  # with more of them in float, the rest of the model is no longer an INT8 model worth its name

_REFERENCE = Candidate("fp32", "any", "onnxruntime", Path())


@dataclass(frozen=True, slots=True)
class Step:
    """One layer more in float, or one stretch of them.

    Attributes:
        layers: their names.
        gain: see `Sensitivity.gain`.
        cost_ms: how much slower the file became, medians of one interleaved run; None for TensorRT, which does not run here.
        f1_against_fp32, mean_score_shift: of the file with these and all former layers in float, in its worst form.
        refused: the bar that it still misses; empty when the gate holds.
    """

    layers: tuple[str, ...]
    gain: float
    cost_ms: float | None
    f1_against_fp32: float
    mean_score_shift: float
    refused: str


@dataclass(frozen=True, slots=True)
class Fallback:
    """The outcome.

    Attributes:
        model: the INT8 graph that holds, with no float layer that it could do without; or the last one tried.
        float_layers: which layers of it are float.
        steps: in the order of trying.
        holds: whether the gate holds.
        sensitivity: the stretches that were ranked.
    """

    model: onnx.ModelProto
    float_layers: tuple[str, ...]
    steps: tuple[Step, ...]
    holds: bool
    sensitivity: tuple[Sensitivity, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Quantised:
    """An INT8 graph beside its float graph, the engine that judges it, and the form that it is in."""

    fp32: onnx.ModelProto
    int8: onnx.ModelProto
    engine: str
    form: Form


def fall_back(
    quantised: Quantised, scan: SensitivityScan, reference: Run, gate: Gate, slowest_ms: float, report: Report
) -> Fallback:
    """Returns layers to float, the most harmful first, until the gate holds.

    Args:
        quantised: what failed.
        scan: of it.
        reference: FP32's run over the gate's frames.
        gate: the bars and frames.
        slowest_ms: a file slower than this is not worth having; the search ends there.
        report: told each step, and what the engine refuses to have in float.
    """
    ranking = scan.stretches()
    current = quantised.int8
    returned: list[list[Layer]] = []
    steps: list[Step] = []
    for unit, gain in _most_harmful_first(scan, ranking):
        if gain <= 0:
            continue
        if len(_flat(returned)) + len(unit) > MAX_LAYERS:
            break
        names = tuple(layer.name for layer in unit)
        told = " to ".join(dict.fromkeys((names[0], names[-1])))
        tried = with_float_layers(quantised.int8, quantised.fp32, _flat([*returned, unit]))
        try:
            *rows, before = measured((*forms_of(tried, quantised.form), current), quantised, reference, gate)
        except BackendError as error:
            report(f"{told} stays INT8: {quantised.engine} refuses it in float ({first_line(error.__cause__ or error)})")
            continue
        returned.append(unit)
        row = _worst(rows)
        cost_ms = row.latency_p50_ms - before.latency_p50_ms if quantised.form == "cpu" else None
        steps.append(Step(names, gain, cost_ms, row.f1_against_fp32, row.mean_score_shift, row.refused))
        cost = "" if cost_ms is None else f", {cost_ms:+.1f} ms"
        report(f"{told} in float: {row.refused or 'the gate holds'}{cost}")
        current = tried
        if not row.refused or row.latency_p50_ms > slowest_ms:
            break
    holds = bool(steps) and not steps[-1].refused
    if holds:
        current, returned = _pruned(current, returned, quantised, reference, gate)
    names = tuple(layer.name for layer in _flat(returned))
    return Fallback(current, names, tuple(steps), holds, tuple(ranking))


def _pruned(
    current: onnx.ModelProto, returned: list[list[Layer]], quantised: Quantised, reference: Run, gate: Gate
) -> tuple[onnx.ModelProto, list[list[Layer]]]:
    """Without what turned out not to be needed: the steps before the last one, which closed the gap."""
    for unit in returned[:-1]:
        fewer = [other for other in returned if other is not unit]
        tried = with_float_layers(quantised.int8, quantised.fp32, _flat(fewer))
        try:
            needed = bool(_worst(measured(forms_of(tried, quantised.form), quantised, reference, gate)).refused)
        except BackendError:  # it refuses that mixture, so the unit stays in float
            continue
        if not needed:
            current, returned = tried, fewer
    return current, returned


def _most_harmful_first(scan: SensitivityScan, ranking: Sequence[Sensitivity]) -> Iterator[tuple[list[Layer], float]]:
    """Stretches by falling gain; where one layer of it is to blame, that one comes first and the rest after it."""
    by_name = {layer.name: layer for layer in scan.layers}
    for stretch in sorted(ranking, key=lambda item: -item.gain):
        layers = [by_name[name] for name in stretch.layers]
        alone, blamed = max(((scan.of([layer]).gain, layer) for layer in layers), key=lambda pair: pair[0])
        if alone < _TO_BLAME * stretch.gain:
            yield layers, stretch.gain
            continue
        yield [blamed], alone
        if rest := [layer for layer in layers if layer is not blamed]:
            yield rest, stretch.gain - alone


def _worst(rows: Sequence[Parity]) -> Parity:
    """Of the forms that are shipped of one graph."""
    return max(rows, key=lambda row: (bool(row.refused), -row.f1_against_fp32))


def _flat(units: Sequence[Sequence[Layer]]) -> list[Layer]:
    return [layer for unit in units for layer in unit]


def measured(models: Sequence[onnx.ModelProto], quantised: Quantised, reference: Run, gate: Gate) -> list[Parity]:
    """The gate's rows of INT8 graphs under the engine that judges them, interleaved.

    Raises:
        BackendError: the engine refuses one of them.
    """
    with tempfile.TemporaryDirectory(prefix="edgeloop-") as folder:
        candidates = []
        for index, model in enumerate(models):
            path = Path(folder) / f"{index}.onnx"
            path.write_bytes(model.SerializeToString())
            candidates.append(Candidate("int8", quantised.form, quantised.engine, path))
        skipped: list[str] = []
        runs = run_candidates(candidates, gate, skipped)
    if skipped:
        raise BackendError(skipped[0])
    return judge({_REFERENCE: reference, **runs}, gate, replicates=0)[1:]
