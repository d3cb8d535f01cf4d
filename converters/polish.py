"""A file that holds the gate, made better for little time: the layers that INT8 hurts most return to float.

INT8 is twice as fast as FP32 or more where it is worth having; a little of that buys back much of what it lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from converters.fallback import Quantised
from converters.layers import Layer
from converters.multiply_adds import multiply_adds
from converters.sensitivity import ROUGHLY, TIMINGS, Sensitivity, SensitivityScan
from runtime.progress import Report

_STRETCHES = 12
_TIME_SHARE = 0.12  # what may be spent; INT8 that is 2.2 times as fast as FP32 stays twice as fast
_DEAR = 0.04  # a stretch that costs more is taken apart
_LEAST_COST = 0.002  # of the whole time; less cannot be timed


def polished_layers(quantised: Quantised, scan: SensitivityScan, ranking: Sequence[Sensitivity], report: Report) -> list[Layer]:
    """The layers to return to float, those first that gain most for their time, as far as they are cheap and gain together.

    Stretches that gain alone need not gain together, so each is measured with those taken before it. On a CPU what they
    cost is timed. TensorRT does not run here, so its cost is their share of the multiply-adds, which FP16 does at half the
    rate of INT8 (NVIDIA's data sheets from Turing on): an upper bound, since layers bound by memory lose less.

    Args:
        quantised: the graph, and its engine.
        scan: of it.
        ranking: its stretches and what each gains.
        report: told what returns.
    """
    arithmetic = multiply_adds(quantised.fp32) if quantised.form != "cpu" else {}
    layers = {layer.name: layer for layer in scan.layers}
    returned: list[Layer] = []
    distance = scan.base
    harmful = sorted((item for item in ranking if item.gain > 0), key=lambda item: -item.gain)[:_STRETCHES]
    worth: list[tuple[float, list[Layer]]] = []
    for stretch in harmful:
        group = [layers[name] for name in stretch.layers]
        cost = _cost(scan, group, arithmetic)
        if cost <= _DEAR or len(group) == 1:
            worth.append((stretch.gain / cost, group))
            continue
        for layer in group:  # one of them may be what gains, and another what costs
            worth.append((scan.of([layer]).gain / _cost(scan, [layer], arithmetic), [layer]))
    for _, group in sorted(((gain, group) for gain, group in worth if gain > 0), key=lambda item: -item[0]):
        tried = [*returned, *group]
        if (less := scan.of(tried).distance) >= distance or (slower := _slowdown(scan, tried, arithmetic)) > 1 + _TIME_SHARE:
            continue
        returned, distance = tried, less
        report(f"{group[0].name} to {group[-1].name} in float: time × {slower:.3f}")
    return returned


def _cost(scan: SensitivityScan, group: Sequence[Layer], arithmetic: dict[str, int]) -> float:
    """Share of the whole time that a group in float adds, roughly."""
    return max(_LEAST_COST, _slowdown(scan, group, arithmetic, ROUGHLY) - 1)


def _slowdown(scan: SensitivityScan, tried: Sequence[Layer], arithmetic: dict[str, int], timings: int = TIMINGS) -> float:
    if not arithmetic:
        return scan.slowdown(tried, timings)
    return 1 + sum(arithmetic.get(layer.name, 0) for layer in tried) / sum(arithmetic.values())
