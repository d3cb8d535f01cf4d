from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from converters.layers import decode_nodes
from runtime.bundle import Bundle


def test_qdq__activations_are_unsigned_weights_signed_head_arithmetic_float(bundle: Bundle) -> None:
    fp32, int8 = (onnx.load(bundle.model_path(precision)) for precision in ("fp32", "int8"))
    constants = {item.name: numpy_helper.to_array(item) for item in int8.graph.initializer}
    quantizers = [node for node in int8.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) > 50
    assert {constants[node.input[2]].dtype for node in quantizers} == {np.dtype(np.uint8)}
    weights = [node for node in int8.graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    assert {constants[node.input[0]].dtype for node in weights} == {np.dtype(np.int8)}
    assert len(weights) > 80
    ignored = set(decode_nodes(fp32))
    dequantized = {output for node in int8.graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    inside = [
        node
        for node in int8.graph.node
        if node.name in ignored and dequantized & set(node.input) and node.op_type != "GlobalAveragePool"
    ]
    assert inside == []


def test_decode_nodes__from_the_last_convolutions_to_the_outputs(bundle: Bundle) -> None:
    fp32 = onnx.load(bundle.model_path("fp32"))
    names = set(decode_nodes(fp32))
    kinds = {node.op_type for node in fp32.graph.node if node.name in names}
    assert {"Softmax", "Sigmoid", "TopK", "Cast"} <= kinds
    convolutions = [node for node in fp32.graph.node if node.op_type == "Conv" and node.name in names]
    assert [node.name.split("/")[-2] for node in convolutions] == ["conv"]  # the DFL's only
    assert "dfl" in convolutions[0].name
