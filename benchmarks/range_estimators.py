"""Does another estimate of the activations' ranges beat NNCF's default? COCO weights at 640 px, plain NNCF, no mending.

The default is the mean of every frame's extremes. Beside it: the extremes of all frames, the median of every frame's, the
percentiles 0.1, 0.01 and 0.001, and the histogram whose quantisation error is least in squares. For TensorRT also: both
inputs of a residual sum with one scale, and the sum's own input left in float. The CPU form is judged under OpenVINO,
TensorRT's under ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import nncf
import onnx
import yaml
from nncf.quantization.range_estimator import (
    AggregatorType,
    RangeEstimatorParameters,
    RangeEstimatorParametersSet,
    StatisticsCollectorParameters,
    StatisticsType,
)  # fmt: skip
from onnx import numpy_helper

from benchmarks.common import DATA, WORK, coco_pool, write_result
from calibration.batches import PoolBatches
from calibration.gate_frames import LabeledGateFrames
from calibration.labels import read_labels
from converters.gate import Candidate, Gate, judge, run_candidates
from converters.imported import ImportOptions, load_model
from converters.qdq_from_onnx import Family, import_nncf, qdq_from_onnx
from runtime.images import list_images
from runtime.pool import Pool
from runtime.postprocess import Thresholds

FOLDER = WORK / "range-estimators"
MODELS = ("yolo11n", "yolov8n")
FRAMES = 64
FAMILIES: tuple[tuple[Family, str], ...] = (("cpu", "openvino"), ("tensorrt", "onnxruntime"))


def estimators() -> Iterator[tuple[str, Any]]:
    """Name and NNCF's parameters."""
    sets = RangeEstimatorParametersSet
    yield "mean of extremes (default)", None
    yield "extremes", sets.MINMAX
    yield "median of extremes", sets.MEDIAN_MINMAX
    for share in (1e-3, 1e-4, 1e-5):
        of = StatisticsCollectorParameters(StatisticsType.QUANTILE, AggregatorType.MEAN, quantile_outlier_prob=share)
        yield f"percentile {share:.3%}", RangeEstimatorParameters(min=of, max=of)
    yield "histogram, least squares", sets.HISTOGRAM


def with_one_residual_scale(model: onnx.ModelProto) -> onnx.ModelProto:
    """Both inputs of every sum of two quantised tensors get the larger of their scales."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    producer = {output: node for node in changed.graph.node for output in node.output}
    constants = {item.name: item for item in changed.graph.initializer}
    for node in changed.graph.node:
        sources = [_dequantizer(name, producer) for name in node.input] if node.op_type == "Add" else []
        scales = [constants[source.input[1]] for source in sources if source is not None]
        if len(scales) == 2:
            largest = max(scales, key=lambda item: float(numpy_helper.to_array(item)))
            for item in scales:
                name = item.name
                item.CopyFrom(largest)
                item.name = name
    return changed


def _dequantizer(name: str, producer: dict[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    node = producer.get(name)
    while node is not None and node.op_type in ("Slice", "Split"):
        node = producer.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def with_float_residual_sums(model: onnx.ModelProto) -> onnx.ModelProto:
    """No quantizer between a layer's activation and the sum behind it."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    producer = {output: node for node in changed.graph.node for output in node.output}
    for node in changed.graph.node:
        for place, name in enumerate(node.input if node.op_type == "Add" else ()):
            dequantize = producer.get(name)
            quantize = (
                producer.get(dequantize.input[0])
                if dequantize is not None and dequantize.op_type == "DequantizeLinear"
                else None
            )
            if quantize is not None and quantize.op_type == "QuantizeLinear" and producer[quantize.input[0]].op_type == "Mul":
                node.input[place] = quantize.input[0]
    return changed


def recipes(family: Family) -> Iterator[tuple[str, Any, Callable[[onnx.ModelProto], onnx.ModelProto]]]:
    """Name, ranges, and what is done to the graph afterwards."""
    for name, ranges in estimators():
        yield name, ranges, lambda model: model
    if family == "tensorrt":
        yield "default, one scale for a residual sum", None, with_one_residual_scale
        yield "default, residual sums in float", None, with_float_residual_sums


def main() -> None:
    import_nncf()
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = list(yaml.safe_load((DATA / "coco_val2017" / "data.yaml").read_text(encoding="utf-8"))["names"].values())
    items = read_labels(list_images(DATA / "coco_val2017" / "images"), len(names))
    found: dict[str, Any] = {}
    with Pool.open(coco_pool()) as pool:
        entries = pool.entries()[:FRAMES]
        for name in MODELS:
            model = load_model(DATA / "weights" / f"{name}_coco_dequant_state_fp16.pt", ImportOptions(imgsz=640))
            onnx.save(model.graph, FOLDER / "fp32.onnx")
            gate = Gate(LabeledGateFrames(items, model.preprocess), Thresholds(0.25, 0.7), model.names)
            reference = run_candidates([Candidate("fp32", "any", "onnxruntime", FOLDER / "fp32.onnx")], gate, [])
            for family, engine in FAMILIES:
                for recipe, ranges, after in recipes(family):
                    batches = PoolBatches(pool, entries, model.preprocess)
                    int8 = qdq_from_onnx(model.graph, batches, FRAMES, family, ranges=ranges)
                    onnx.save(after(int8), FOLDER / "int8.onnx")
                    candidate = Candidate("int8", "cpu" if family == "cpu" else "tensorrt", engine, FOLDER / "int8.onnx")
                    row = judge({**reference, **run_candidates([candidate], gate, [])}, gate, replicates=0)[-1]
                    assert row.labeled is not None
                    found[f"{name}, {family}, {recipe}"] = {
                        "f1_against_fp32": row.f1_against_fp32,
                        "mean_score_shift": row.mean_score_shift,
                        "f1_drop": row.labeled.f1_drop,
                        "map50_95_drop": row.labeled.map50_95_drop,
                    }
                    write_result("range_estimators", {"frames": FRAMES, "nncf": nncf.__version__, "results": found})


if __name__ == "__main__":
    main()
