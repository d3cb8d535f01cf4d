"""Small functions ONNX → ONNX that turn an exported YOLO into the deployed graph of DESIGN §3.

None edits its argument. Standard ONNX only, opset 17, static shapes: what ONNX Runtime, OpenVINO and TensorRT share.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.graph_builder import PREFIX, GraphBuilder, copy_of, drop_outputs, shape_of_output

IMAGES = "images"
# 300, the usual cap on detections, costs 0.65 points of mAP50-95 because duplicates fill it before NMS; 1000 costs 0.09
# (benchmarks/results/coco_parity.json). End-to-end heads have no duplicates and keep 300.
TOP_K = 1000
END_TO_END_TOP_K = 300


def with_uint8_bgr_input(model: onnx.ModelProto, scale: float, *, swap_channels: bool) -> onnx.ModelProto:
    """Makes a float NCHW input `images` take uint8 (b, h, w, 3) BGR instead.

    Scale and channel order are folded into the weights of the first convolution, so they cost nothing. An input that
    feeds anything else (the slices of YOLOX's Focus) gets nodes for them. The Cast comes before the Transpose because
    TensorRT rejects a uint8 Transpose.
    """
    model = copy_of(model)
    graph = model.graph
    batch, channels, height, width = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim)
    weight = _first_weight(graph)
    if weight is not None:
        values = numpy_helper.to_array(weight)
        folded = (values[:, ::-1] if swap_channels else values) * np.float32(scale)
        weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(folded, np.float32), weight.name))
    first = len(graph.node)
    build = GraphBuilder(graph, f"{PREFIX}/input")
    last = build.node("Transpose", [build.node("Cast", [IMAGES], to=TensorProto.FLOAT)], perm=[0, 3, 1, 2])
    if weight is None and swap_channels:
        last = build.node("Gather", [last, build.constant(np.array([2, 1, 0], np.int64))], axis=1)
    if weight is None and scale != 1:
        last = build.node("Mul", [last, build.constant(np.array(scale, np.float32))])
    for node in graph.node[:first]:
        for index, name in enumerate(node.input):
            if name == IMAGES:
                node.input[index] = last
    ordered = [*graph.node[first:], *graph.node[:first]]
    del graph.node[:]
    graph.node.extend(ordered)
    graph.input[0].CopyFrom(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [batch, height, width, channels]))
    return model


def _first_weight(graph: onnx.GraphProto) -> onnx.TensorProto | None:
    """The weight of the one convolution that the input feeds; None where scale and colour cannot be folded into it."""
    users = [node for node in graph.node if IMAGES in node.input]
    if len(users) != 1 or users[0].op_type != "Conv":
        return None
    name = users[0].input[1]
    shared = sum(name in node.input for node in graph.node) > 1
    return next((item for item in graph.initializer if item.name == name and not shared), None)


def with_top_k(model: onnx.ModelProto, predictions: str, k: int) -> onnx.ModelProto:
    """Replaces the output `predictions` (b, 4 + classes, n) by the k best `boxes`, `scores` and `classes`.

    First the k anchors whose best class scores highest, then the k best (anchor, class) pairs of those: the same pairs
    as a top-k over all n × classes, at a fraction of its cost, and several classes of one anchor survive as in the
    usual evaluation. No NMS: its data-dependent shapes block CUDA graphs and half of the engines.
    """
    model = copy_of(model)
    batch, channels, anchors = shape_of_output(model, predictions)
    k, classes = min(k, anchors), channels - 4
    build = GraphBuilder(model.graph, f"{PREFIX}/topk")
    boxes_cn, scores_cn = build.split(predictions, (4, classes), axis=1)  # (b, 4, n), (b, classes, n)
    best = build.node("ReduceMax", [scores_cn], axes=[1], keepdims=0)
    _, anchor = build.top_k(best, k)  # (b, k)
    scores_ck = build.gather_columns(scores_cn, anchor, (batch, classes, k))
    boxes_ck = build.gather_columns(boxes_cn, anchor, (batch, 4, k))
    flat = build.node("Reshape", [scores_ck, build.constant(np.array([batch, classes * k], np.int64))])
    scores, pair = build.top_k(flat, k)
    class_id = build.node("Div", [pair, build.constant(np.array(k, np.int64))])
    column = build.node("Sub", [pair, build.node("Mul", [class_id, build.constant(np.array(k, np.int64))])])
    boxes = build.node("Transpose", [build.gather_columns(boxes_ck, column, (batch, 4, k))], perm=[0, 2, 1])
    return _with_detection_outputs(model, predictions, (boxes, scores, class_id), (batch, k))


def with_end_to_end_outputs(model: onnx.ModelProto, predictions: str) -> onnx.ModelProto:
    """Splits the output (b, k, 6) of an end-to-end head (v10, 26) into `boxes`, `scores` and `classes`."""
    model = copy_of(model)
    batch, k, _ = shape_of_output(model, predictions)
    build = GraphBuilder(model.graph, f"{PREFIX}/e2e")
    boxes, score, label = build.split(predictions, (4, 1, 1), axis=2)
    axis = build.constant(np.array([2], np.int64))
    scores, classes = build.node("Squeeze", [score, axis]), build.node("Squeeze", [label, axis])
    class_id = build.node("Cast", [classes], to=TensorProto.INT64)
    return _with_detection_outputs(model, predictions, (boxes, scores, class_id), (batch, k))


def with_embedding(model: onnx.ModelProto, features: Sequence[str]) -> onnx.ModelProto:
    """Replaces the feature-map outputs (b, c, h, w) by `embedding` (b, sum of c): averaged, joined, L2-normalised."""
    model = copy_of(model)
    batch, dim = shape_of_output(model, features[0])[0], sum(shape_of_output(model, name)[1] for name in features)
    build = GraphBuilder(model.graph, f"{PREFIX}/embedding")
    pooled = [build.node("Flatten", [build.node("GlobalAveragePool", [name])], axis=1) for name in features]
    joined = build.node("Concat", pooled, axis=1)
    norm = build.node("ReduceL2", [joined], axes=[1], keepdims=1)
    floor = build.constant(np.array(1e-12, np.float32))  # an all-zero vector stays zero instead of NaN
    unit = build.node("Div", [joined, build.node("Max", [norm, floor])])
    build.node("Identity", [unit], output="embedding")
    drop_outputs(model, features)
    model.graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, dim]))
    return model


def uses_nms(model: onnx.ModelProto) -> bool:
    """Whether the host must run NMS on this graph's boxes: all but end-to-end heads."""
    return any(node.name.startswith("edgeloop/topk") for node in model.graph.node)


def _with_detection_outputs(
    model: onnx.ModelProto, replaced: str, names: tuple[str, str, str], shape: tuple[int, int]
) -> onnx.ModelProto:
    batch, k = shape
    drop_outputs(model, [replaced])
    kinds = (
        ("boxes", TensorProto.FLOAT, [batch, k, 4]),
        ("scores", TensorProto.FLOAT, [batch, k]),
        ("classes", TensorProto.INT64, [batch, k]),
    )
    for source, (name, dtype, dims) in zip(names, kinds, strict=True):
        model.graph.node.append(helper.make_node("Identity", [source], [name], f"{PREFIX}/{name}"))
        model.graph.output.append(helper.make_tensor_value_info(name, dtype, dims))
    return model
