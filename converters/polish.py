"""A file that holds the gate, made better for little time: the layers that INT8 hurts most return to float.

INT8 is twice as fast as FP32 or more where it is worth having; a little of that buys back much of what it lost.
"""

from __future__ import annotations

from collections.abc import Sequence

from converters.fallback import Quantised
from converters.layers import Layer
from converters.multiply_adds import multiply_adds
from converters.sensitivity import Sensitivity, SensitivityScan
from runtime.progress import Report

_STRETCHES = 12
_TIME_SHARE = 0.25  # what may be spent; INT8 that is 2.2 times as fast as FP32 stays 1.75 times as fast


def polished_layers(quantised: Quantised, scan: SensitivityScan, ranking: Sequence[Sensitivity], report: Report) -> list[Layer]:
    """The layers to return to float, the most harmful stretches first, as far as they are cheap and gain together.

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
    for stretch in sorted((item for item in ranking if item.gain > 0), key=lambda item: -item.gain)[:_STRETCHES]:
        tried = [*returned, *(layers[name] for name in stretch.layers)]
        if (less := scan.of(tried).distance) >= distance or (slower := _slowdown(scan, tried, arithmetic)) > 1 + _TIME_SHARE:
            continue
        returned, distance = tried, less
        report(f"{stretch.layers[0]} to {stretch.layers[-1]} in float: time × {slower:.3f}")
    return returned


def _slowdown(scan: SensitivityScan, tried: Sequence[Layer], arithmetic: dict[str, int]) -> float:
    if not arithmetic:
        return scan.slowdown(tried)
    return 1 + sum(arithmetic.get(layer.name, 0) for layer in tried) / sum(arithmetic.values())
