"""Which layers does INT8 hurt? Each group is returned to float by itself and the change on frames is measured.

Groups are stretches of consecutive layers first; only the stretch that matters is taken apart, so a model of 90 layers
needs about 33 measurements and not 90.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from calibration.gate_frames import GateFrame, GateFrames
from calibration.matching import match_boxes
from converters.layers import Layer, layers_of
from converters.quantizer_passes import with_float_layers
from runtime.backends import Backend, open_model
from runtime.detections import Detections
from runtime.errors import BackendError, first_line
from runtime.postprocess import Thresholds, detections_from_outputs
from runtime.progress import Progress

STRETCHES = 30  # three layers each in a YOLO of 90
FRAMES = 24  # a saturated layer is plain on a few frames; small harm needs some more
_TIMINGS = 51
_THRESHOLDS_IN_ONE_IOU = 2.0  # mAP50-95 spreads its thresholds over half of the IoU's range
_LOWEST_SCORE = 0.05  # weaker boxes are noise in both


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What returning a group of layers to float gains.

    Attributes:
        layers: their names.
        distance: of the detections from FP32's when this group alone is float, 0 and more (see `score_distance`).
        gain: how much smaller that is than with all of them in INT8; 0 where the engine refuses the mixture.
        refused: why it does, else empty.
    """

    layers: tuple[str, ...]
    distance: float
    gain: float
    refused: str = ""


class SensitivityScan:
    """Measures groups of layers of one INT8 file under one engine, on at most `FRAMES` of the frames.

    Attributes:
        layers: of the float graph.
        base: distance of the INT8 graph itself.
    """

    def __init__(
        self, fp32: onnx.ModelProto, int8: onnx.ModelProto, engine: str, frames: GateFrames, iou: float | None
    ) -> None:
        """`iou` is the release's own of the non-maximum suppression, None where the head needs none."""
        self._fp32, self._int8, self._engine = fp32, int8, engine
        self._thresholds = Thresholds(_LOWEST_SCORE, iou)
        self.layers = _quantised_layers(fp32, int8)
        self._frames = _spread(frames, FRAMES)
        self._expected = self._detections(fp32)
        self.base = self._distance(int8)

    def stretches(self) -> list[Sensitivity]:
        """All layers in groups of consecutive ones, in the graph's order; a group that the engine refuses is taken apart."""
        size = max(1, -(-len(self.layers) // STRETCHES))
        groups = [self.layers[start : start + size] for start in range(0, len(self.layers), size)]
        with Progress("sensitivity", len(groups)) as progress:
            found = []
            for group in groups:
                whole = self.of(group)
                found += [self.of([layer]) for layer in group] if whole.refused and len(group) > 1 else [whole]
                progress.advance(group[0].name)
        return found

    def of(self, group: Sequence[Layer]) -> Sensitivity:
        """One group; OpenVINO's passes fail on some mixtures of INT8 and float, and that group then stays INT8."""
        names = tuple(layer.name for layer in group)
        try:
            distance = self._distance(with_float_layers(self._int8, self._fp32, group))
        except BackendError as error:
            return Sensitivity(names, self.base, 0.0, f"{self._engine} refuses it: {first_line(error.__cause__ or error)}")
        return Sensitivity(names, distance, self.base - distance)

    def slowdown(self, group: Sequence[Layer]) -> float:
        """Time of the graph with `group` in float over the time without, medians, one inference of each in turn."""
        times: tuple[list[float], list[float]] = ([], [])
        tried = with_float_layers(self._int8, self._fp32, group)
        with opened(tried, self._engine) as one, opened(self._int8, self._engine) as other:
            for _ in range(_TIMINGS):
                for backend, spent in zip((one, other), times, strict=True):
                    start = time.perf_counter()
                    backend.infer(self._frames[0].canvas[None])
                    spent.append(time.perf_counter() - start)
        return float(np.median(times[0]) / np.median(times[1]))

    def _distance(self, model: onnx.ModelProto) -> float:
        pairs = zip(self._detections(model), self._expected, strict=True)
        return score_distance(list(pairs))

    def _detections(self, model: onnx.ModelProto) -> list[Detections]:
        with opened(model, self._engine) as backend:
            return [
                detections_from_outputs(backend.infer(frame.canvas[None]), 0, frame.letterbox, self._thresholds)
                for frame in self._frames
            ]


@contextmanager
def opened(model: onnx.ModelProto, engine: str) -> Iterator[Backend]:
    """A graph in memory, loaded by an engine; its file lives as long as the `with`."""
    with tempfile.TemporaryDirectory(prefix="edgeloop-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        backend = open_model(engine, path, "int8")
        try:
            yield backend
        finally:
            backend.close()


def score_distance(pairs: Sequence[tuple[Detections, Detections]], least: float = 1e-9) -> float:
    """How far detections are from the expected ones: the score that changed, appeared or vanished, over the expected score.

    A matched box that moved counts as well: at the thresholds of mAP50-95, ten from 0.50 to 0.95, a box whose IoU falls by d
    is worth 2d of its score less.

    0 when all boxes and scores are the same; 1 when nothing was found; more when boxes were made up. It is smooth where F1
    jumps, so it ranks layers on few frames. The expected score counts as `least` at least: for one frame alone 1, or a
    faint box on an empty frame would be the worst of all.
    """
    changed = total = 0.0
    for found, expected in pairs:
        total += float(expected.confidence.sum())
        index, iou = match_boxes(expected, found)
        seen = index >= 0
        both = found[index[seen]].confidence
        changed += float(abs(expected[seen].confidence - both).sum() + expected[~seen].confidence.sum())
        changed += float(found.confidence.sum() - both.sum())
        changed += _THRESHOLDS_IN_ONE_IOU * float((expected[seen].confidence * (1 - iou[seen])).sum())
    return changed / max(total, least)


def _quantised_layers(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> list[Layer]:
    """Layers with a quantizer at an input of their weighted node, or behind any of their nodes."""
    quantized = {node.input[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"}
    dequantized = {node.output[0] for node in int8.graph.node if node.op_type == "DequantizeLinear"}
    touched = {
        node.name for node in int8.graph.node if quantized.intersection(node.output) or dequantized.intersection(node.input)
    }
    return [layer for layer in layers_of(fp32) if touched & layer.nodes]


def _spread(frames: GateFrames, count: int) -> list[GateFrame]:
    """`count` frames at equal distances."""
    wanted = {round(index * (len(frames) - 1) / max(1, count - 1)) for index in range(min(count, len(frames)))}
    return [frame for index, frame in enumerate(frames) if index in wanted]
