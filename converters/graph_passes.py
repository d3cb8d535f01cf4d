"""Small functions ONNX → ONNX that turn an exported YOLO into the deployed graph of DESIGN §3.

None edits its argument. Standard ONNX only, opset 17, static shapes: what ONNX Runtime, OpenVINO and TensorRT share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from converters.errors import ConversionError

IMAGES = "images"
OPSET = 17  # the newest that TensorRT 8.x, ONNX Runtime's quantisers and OpenVINO all read
_PREFIX = "edgeloop"


def with_uint8_bgr_input(model: onnx.ModelProto, scale: float, *, swap_channels: bool) -> onnx.ModelProto:
    """Makes a float NCHW input `images` take uint8 (b, h, w, 3) BGR instead.

    Scale and channel order are folded into the weights of the first convolution, so they cost nothing. The Cast comes
    before the Transpose because TensorRT rejects a uint8 Transpose.

    Raises:
        ConversionError: the input feeds anything but one convolution.
    """
    model = _copy(model)
    graph = model.graph
    users = [node for node in graph.node if IMAGES in node.input]
    if len(users) != 1 or users[0].op_type != "Conv":
        found = ", ".join(node.op_type for node in users) or "nothing"
        raise ConversionError(f"input {IMAGES!r} must feed one Conv to fold colour and scale into, but it feeds {found}")
    weight = next(item for item in graph.initializer if item.name == users[0].input[1])
    values = numpy_helper.to_array(weight)
    folded = (values[:, ::-1] if swap_channels else values) * np.float32(scale)
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(folded, np.float32), weight.name))
    batch, channels, height, width = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim)
    graph.input[0].CopyFrom(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [batch, height, width, channels]))
    users[0].input[0] = f"{_PREFIX}/nchw"
    cast = helper.make_node("Cast", [IMAGES], [f"{_PREFIX}/float"], f"{_PREFIX}/Cast", to=TensorProto.FLOAT)
    transpose = helper.make_node(
        "Transpose", [f"{_PREFIX}/float"], [f"{_PREFIX}/nchw"], f"{_PREFIX}/Transpose", perm=[0, 3, 1, 2]
    )
    graph.node.insert(0, cast)
    graph.node.insert(1, transpose)
    return model


def with_top_k(model: onnx.ModelProto, predictions: str, k: int) -> onnx.ModelProto:
    """Replaces the output `predictions` (b, 4 + classes, n) by the k best `boxes`, `scores` and `classes`.

    First the k anchors whose best class scores highest, then the k best (anchor, class) pairs of those: the same pairs
    as a top-k over all n × classes, at a fraction of its cost, and several classes of one anchor survive as in the
    usual evaluation. No NMS: its data-dependent shapes block CUDA graphs and half of the engines.
    """
    model = _copy(model)
    batch, channels, anchors = _shape_of(model, predictions)
    k, classes = min(k, anchors), channels - 4
    build = _Builder(model.graph, f"{_PREFIX}/topk")
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
    model = _copy(model)
    batch, k, _ = _shape_of(model, predictions)
    build = _Builder(model.graph, f"{_PREFIX}/e2e")
    boxes, score, label = build.split(predictions, (4, 1, 1), axis=2)
    axis = build.constant(np.array([2], np.int64))
    scores, classes = build.node("Squeeze", [score, axis]), build.node("Squeeze", [label, axis])
    class_id = build.node("Cast", [classes], to=TensorProto.INT64)
    return _with_detection_outputs(model, predictions, (boxes, scores, class_id), (batch, k))


def with_embedding(model: onnx.ModelProto, features: Sequence[str]) -> onnx.ModelProto:
    """Replaces the feature-map outputs (b, c, h, w) by `embedding` (b, sum of c): averaged, joined, L2-normalised."""
    model = _copy(model)
    batch, dim = _shape_of(model, features[0])[0], sum(_shape_of(model, name)[1] for name in features)
    build = _Builder(model.graph, f"{_PREFIX}/embedding")
    pooled = [build.node("Flatten", [build.node("GlobalAveragePool", [name])], axis=1) for name in features]
    joined = build.node("Concat", pooled, axis=1)
    norm = build.node("ReduceL2", [joined], axes=[1], keepdims=1)
    floor = build.constant(np.array(1e-12, np.float32))  # an all-zero vector stays zero instead of NaN
    unit = build.node("Div", [joined, build.node("Max", [norm, floor])])
    build.node("Identity", [unit], output="embedding")
    _drop_outputs(model, features)
    model.graph.output.append(helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, dim]))
    return model


class _Builder:
    """Appends named nodes to a graph; every method gives the name of what it made."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self._graph, self._prefix, self._count = graph, prefix, 0

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}/{kind}_{self._count}"

    def node(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        name = self._name(kind)
        self._graph.node.append(helper.make_node(kind, list(inputs), [output or name], name, **attributes))
        return output or name

    def constant(self, value: np.ndarray) -> str:
        name = self._name("constant")
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def split(self, source: str, sizes: Sequence[int], axis: int) -> list[str]:
        name = self._name("Split")
        outputs = [f"{name}/{index}" for index in range(len(sizes))]
        lengths = self.constant(np.array(sizes, np.int64))
        self._graph.node.append(helper.make_node("Split", [source, lengths], outputs, name, axis=axis))
        return outputs

    def top_k(self, source: str, k: int) -> tuple[str, str]:
        name = self._name("TopK")
        values, indices = f"{name}/values", f"{name}/indices"
        count = self.constant(np.array([k], np.int64))
        self._graph.node.append(helper.make_node("TopK", [source, count], [values, indices], name, axis=1))
        return values, indices

    def gather_columns(self, source: str, index: str, shape: tuple[int, int, int]) -> str:
        """Of `source` (b, c, n) the columns that `index` (b, k) picks: (b, c, k)."""
        row = self.node("Unsqueeze", [index, self.constant(np.array([1], np.int64))])
        spread = self.node("Expand", [row, self.constant(np.array(shape, np.int64))])
        return self.node("GatherElements", [source, spread], axis=2)


def _with_detection_outputs(
    model: onnx.ModelProto, replaced: str, names: tuple[str, str, str], shape: tuple[int, int]
) -> onnx.ModelProto:
    batch, k = shape
    _drop_outputs(model, [replaced])
    kinds = (
        ("boxes", TensorProto.FLOAT, [batch, k, 4]),
        ("scores", TensorProto.FLOAT, [batch, k]),
        ("classes", TensorProto.INT64, [batch, k]),
    )
    for source, (name, dtype, dims) in zip(names, kinds, strict=True):
        model.graph.node.append(helper.make_node("Identity", [source], [name], f"{_PREFIX}/{name}"))
        model.graph.output.append(helper.make_tensor_value_info(name, dtype, dims))
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def _drop_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    kept = [output for output in model.graph.output if output.name not in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _shape_of(model: onnx.ModelProto, output: str) -> tuple[int, ...]:
    for item in model.graph.output:
        if item.name == output:
            return tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
    known = ", ".join(item.name for item in model.graph.output)
    raise ConversionError(f"the graph has no output {output!r}; it has {known}")
