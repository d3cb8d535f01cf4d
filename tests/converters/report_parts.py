"""Findings of a conversion that never was: a tiny real graph, drawn frames, boxes made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.coverage_map import coverage_map
from calibration.gate_frames import GateFrame
from calibration.sampler import CalibrationFrames
from converters.fallback import Step
from converters.gate import Bars, Candidate, Gate, Run, judge, prefer
from converters.int8_search import Int8Search
from converters.model_files import ModelFile
from converters.report_data import Findings
from converters.sensitivity import Sensitivity
from runtime.detections import Detections
from runtime.device import Device
from runtime.postprocess import Thresholds
from runtime.preprocess import Letterbox

HOSTILE = "</p><script>alert('$\\frac{')</script>&amp;"
FIRST, SECOND, THIRD = f"first {HOSTILE}", "second", "third"
FRAMES = 12
REFERENCE = Candidate("fp32", "any", "onnxruntime", Path("fp32"))
FAST_FLOAT = Candidate("fp32", "any", "openvino", Path("fp32"))
INT8 = Candidate("int8", "cpu", "openvino", Path("int8"))


@dataclass
class DrawnFrames:
    """Grey 96 × 64 frames in a 64 × 64 letterbox; with truth, if labelled."""

    labeled: bool = True

    def __len__(self) -> int:
        return FRAMES

    def __iter__(self) -> Iterator[GateFrame]:
        for place in range(FRAMES):
            canvas = np.full((64, 64, 3), 40 + place, np.uint8)
            box = Letterbox(64 / 96, 0, 11, (96, 64))
            yield GateFrame(f"frame {place} {HOSTILE}", canvas, box, boxes_on(1.0) if self.labeled else None)


def boxes_on(score: float, count: int = 2) -> Detections:
    """Two boxes of class 0 and 1, apart from each other, or the first `count` of them."""
    xyxy = np.array([[10, 10, 40, 40], [50, 20, 80, 60]], np.float32)[:count]
    return Detections(xyxy, np.full(count, score, np.float32), np.arange(count, dtype=np.int32))


def chain(*, quantised: bool) -> onnx.ModelProto:
    """Three convolutions, a concatenation before the second; in INT8 all but the third."""
    weight = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    wide = numpy_helper.from_array(np.ones((3, 6, 1, 1), np.float32), "wide")
    scale = numpy_helper.from_array(np.array(0.1, np.float32), "scale")
    zero = numpy_helper.from_array(np.array(0, np.int8), "zero")
    nodes, constants = [], [weight, wide, scale, zero]

    def through(name: str) -> str:
        if quantised:
            nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}/q"], f"{name}/q"))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}/q", "scale", "zero"], [f"{name}/dq"], f"{name}/dq"))
        return f"{name}/dq" if quantised else name

    nodes.append(helper.make_node("Conv", [through("images"), through("w")], ["a"], FIRST))
    moved = through("a")
    nodes.append(helper.make_node("Concat", [moved, moved], ["both"], "concat", axis=1))
    nodes.append(helper.make_node("Conv", ["both", through("wide")], ["b"], SECOND))
    nodes.append(helper.make_node("Conv", ["b", "w"], ["boxes"], THIRD))
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("images", "boxes")]
    graph = helper.make_graph(nodes, "chain", tensors[:1], tensors[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


def unmeasured() -> Findings:
    """What is known without a pool."""
    nothing = prefer((), Bars())
    return replace(findings_of(), gate=None, runs={}, rows=(), preferred=nothing, drawn=None, searches={})


def findings_of(*, holds: bool = True, labeled: bool = True) -> Findings:
    """FP32 under two engines and INT8 under one; INT8 loses a box on the sixth frame, or one on each if it must not hold."""
    gate = Gate(DrawnFrames(labeled), Thresholds(), ("bolt", HOSTILE), Bars(f1_drop=0.03, map_drop=0.05))
    int8 = Run([boxes_on(0.78, 1 if place == 5 or not holds else 2) for place in range(FRAMES)], [0.010] * FRAMES)
    floats = {
        REFERENCE: Run([boxes_on(0.8)] * FRAMES, [0.030] * FRAMES),
        FAST_FLOAT: Run([boxes_on(0.8)] * FRAMES, [0.025] * FRAMES),
    }
    search = Int8Search(
        ModelFile("int8", "cpu", chain(quantised=True), Path("model.int8.cpu.onnx"), 1, (THIRD,)), holds, runs={INT8: int8},
        steps=(Step((THIRD,), 0.25, 1.5, 0.98, -0.01, ""),),
        sensitivity=(Sensitivity((FIRST, SECOND), 0.5, -0.125), Sensitivity((THIRD,), 0.25, 0.25)),
    )  # fmt: skip
    rows = tuple(judge({**floats, INT8: int8}, gate, replicates=20))
    drawn = CalibrationFrames((), (), "k-center", 3, 5, 1, 0, 0.25, 0.125, coverage_map(np.eye(5, dtype=np.float32), [0, 2]))
    device = Device(cpu=f"CPU {HOSTILE}", machine="x86_64", isa=("avx2",), engines={"openvino": "2026.4"})
    runs = {**floats, INT8: int8} if holds else floats
    variants = (search.file.variant,) if holds else ()
    return Findings(
        f"model {HOSTILE}", chain(quantised=False), gate, runs, rows, prefer(rows, gate.bars), drawn, {"cpu": search}, variants, device
    )  # fmt: skip
