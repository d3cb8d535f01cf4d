"""FP16 baked into a graph, for engines that take every type from the graph (strong typing: TensorRT 10.12+, 11, RTX).

The decode stays in FP32: FP16 has no half pixels beyond 1024 and rounds pixels from 512 on. ONNX Runtime's own converter
was tried: between two neighbours that shall stay FP32 it rounds to FP16 and back, and it names two casts alike, which
ONNX's checker refuses. A Q/DQ graph moves to opset 19, the first whose DequantizeLinear gives FP16.

The scales of Q/DQ become FP16 as they are. Below 6.1e-5 they are subnormal and rounded by up to 3e-8. None of yolo11n's on
COCO is, which are 0.05 % off at most; of fine-tuned models' weights up to 21 scales of 8538 are, from 2.2e-5 on, 0.09 % off at
most: 0.07 of an INT8 step. Raising these scales to 6.1e-5 and rounding their weights anew would cost up to 1.3 steps.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from converters.errors import ConversionError
from converters.layers import decode_nodes
from runtime.errors import first_line

_QDQ_OPSET = 19
_LARGEST = 65504.0  # of FP16
_FLOAT_INPUTS = {"Resize": (1, 2)}  # region and scales, which the operator wants in FP32 whatever its data are


def with_half_floats(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes everything but the decode arithmetic in FP16; input and outputs keep their types.

    Args:
        model: the FP32 graph, or its Q/DQ form with signed activations. Left as it is.

    Raises:
        ConversionError: the graph cannot be moved to opset 19, or its types cannot be inferred.
    """
    floats = set(decode_nodes(model))
    untyped = onnx.ModelProto()
    untyped.CopyFrom(model)
    untyped.graph.ClearField("value_info")  # inferred again below; quantisers leave stale types behind
    try:
        if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
            untyped = version_converter.convert_version(untyped, _QDQ_OPSET)
        halved = _Halved(onnx.shape_inference.infer_shapes(untyped, strict_mode=True), floats).model
        onnx.checker.check_model(halved, full_check=True)
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the graph cannot be converted to FP16: {first_line(error)}; use --precision fp32") from error
    return halved


class _Halved:
    """Rewrites a typed graph node by node; casts appear only where FP16 meets FP32."""

    def __init__(self, typed: onnx.ModelProto, floats: set[str]) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(typed)
        graph = self.model.graph
        self._constants = {item.name: item for item in typed.graph.initializer}
        infos = (*typed.graph.value_info, *typed.graph.input, *typed.graph.output)
        self._types = {item.name: item.type.tensor_type.elem_type for item in infos}
        self._types.update({name: item.data_type for name, item in self._constants.items()})
        self._half: set[str] = set()
        self._made: set[str] = set()
        self._nodes: list[onnx.NodeProto] = []
        for node in typed.graph.node:
            self._rewrite(node, keeps_float=node.name in floats)
        graph.ClearField("node")
        graph.node.extend(self._nodes)
        graph.ClearField("value_info")
        used = {name for node in self._nodes for name in node.input}
        kept = [item for item in graph.initializer if item.name in used]
        graph.ClearField("initializer")
        graph.initializer.extend(kept)

    def _rewrite(self, original: onnx.NodeProto, *, keeps_float: bool) -> None:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        for place, name in enumerate(original.input):
            wants_float = keeps_float or place in _FLOAT_INPUTS.get(node.op_type, ())
            if self._types.get(name) == TensorProto.FLOAT:
                node.input[place] = self._as_float(name) if wants_float else self._as_half(name)
        if not keeps_float:
            self._half.update(name for name in node.output if self._types.get(name) == TensorProto.FLOAT)
            for attribute in node.attribute:
                _halve_attribute(node.op_type, attribute)
        self._nodes.append(node)

    def _as_float(self, name: str) -> str:
        return self._cast(name, f"{name}/float", TensorProto.FLOAT) if name in self._half else name

    def _as_half(self, name: str) -> str:
        if name in self._half:
            return name
        other = f"{name}/half"
        if name not in self._constants:
            return self._cast(name, other, TensorProto.FLOAT16)
        if other not in self._made:
            self._made.add(other)
            values = np.clip(numpy_helper.to_array(self._constants[name]), -_LARGEST, _LARGEST)
            self.model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), other))
        return other

    def _cast(self, name: str, other: str, kind: int) -> str:
        if other not in self._made:
            self._made.add(other)
            self._nodes.append(helper.make_node("Cast", [name], [other], f"{other}/Cast", to=kind))
        return other


def _halve_attribute(kind: str, attribute: onnx.AttributeProto) -> None:
    """Constants and casts that made FP32 make FP16."""
    if kind == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
        attribute.i = TensorProto.FLOAT16
    elif attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT:
        values = np.clip(numpy_helper.to_array(attribute.t), -_LARGEST, _LARGEST)
        attribute.t.CopyFrom(numpy_helper.from_array(values.astype(np.float16), attribute.t.name))
