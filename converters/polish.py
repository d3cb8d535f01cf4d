"""A file that holds the gate, made better for little time: the layers that INT8 hurts most return to float.

INT8 is twice as fast as FP32 or more where it is worth having; a tenth of that buys back much of what it lost. Where
labels say that more than half of a bar is used up, a quarter may be spent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from converters.fallback import Quantised, measured
from converters.gate import Gate, Run
from converters.layers import Layer
from converters.model_files import forms_of
from converters.multiply_adds import multiply_adds
from converters.quantizer_passes import with_float_layers
from converters.sensitivity import Sensitivity, SensitivityScan

Report = Callable[[str], None]

_STRETCHES = 6
_FREE_SHARE = 0.10
_LABELED_SHARE = 0.25
_USED_SHARE = 0.5


class Polish:
    """Returns stretches of layers to float, as far as that pays.

    On a CPU what they cost is timed. TensorRT does not run here, so its cost is their share of the multiply-adds, which
    FP16 does at half the rate of INT8 (NVIDIA's data sheets from Turing on): an upper bound, since layers bound by memory
    lose less.
    """

    def __init__(self, quantised: Quantised, scan: SensitivityScan, reference: Run, gate: Gate, report: Report) -> None:
        self._quantised, self._scan, self._reference, self._gate, self._report = quantised, scan, reference, gate, report
        self._arithmetic = multiply_adds(quantised.fp32)
        self._layers = {layer.name: layer for layer in scan.layers}
        self._returned: list[Layer] = []
        self._distance = scan.base

    def layers(self, ranking: Sequence[Sensitivity]) -> list[Layer]:
        """The layers to return to float.

        Args:
            ranking: the stretches of the file and what each gains.
        """
        harmful = sorted((item for item in ranking if item.gain > 0), key=lambda item: -item.gain)[:_STRETCHES]
        left = [stretch for stretch in harmful if not self._take_if_cheap_and_good(stretch)]
        if self._gate.frames.labeled:
            self._spend_on_labels(left)
        return self._returned

    def _take_if_cheap_and_good(self, stretch: Sensitivity) -> bool:
        """Stretches that gain alone need not gain together, so each is measured with those taken before it."""
        tried = self._with(stretch)
        if (slower := self._slowdown(tried)) > 1 + _FREE_SHARE:
            return False
        if (distance := self._scan.of(tried).distance) >= self._distance:
            return False
        self._returned, self._distance = tried, distance
        self._report(f"{_ends(stretch)} in float: time × {slower:.3f}")
        return True

    def _spend_on_labels(self, left: Sequence[Sensitivity]) -> None:
        loss = self._share_of_bars(self._returned)
        for stretch in left:
            tried = self._with(stretch)
            if loss <= _USED_SHARE or (slower := self._slowdown(tried)) > 1 + _LABELED_SHARE:
                continue
            if (less := self._share_of_bars(tried)) < loss:
                self._returned, loss = tried, less
                self._report(f"{_ends(stretch)} in float for the labels: time × {slower:.3f}")

    def _with(self, stretch: Sensitivity) -> list[Layer]:
        return [*self._returned, *(self._layers[name] for name in stretch.layers)]

    def _slowdown(self, tried: Sequence[Layer]) -> float:
        if self._quantised.form == "cpu":
            return self._scan.slowdown(tried)
        spent = sum(self._arithmetic.get(layer.name, 0) for layer in tried)
        return 1 + spent / max(1, sum(self._arithmetic.values()))

    def _share_of_bars(self, returned: Sequence[Layer]) -> float:
        """How much of what F1 and mAP50-95 may lose is lost, in the worst shipped form; 1 is all of it."""
        model = with_float_layers(self._quantised.int8, self._quantised.fp32, returned)
        worst = 0.0
        for row in measured(forms_of(model, self._quantised.form), self._quantised, self._reference, self._gate):
            if row.labeled is None or row.refused:
                return float("inf")
            bars = self._gate.bars
            worst = max(worst, row.labeled.f1_drop / bars.f1_drop, row.labeled.map50_95_drop / bars.map_drop)
        return worst


def _ends(stretch: Sensitivity) -> str:
    return f"{stretch.layers[0]} to {stretch.layers[-1]}"
