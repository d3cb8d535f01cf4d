from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from converters.qdq_from_onnx import decode_nodes, with_unsigned_activations
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


def test_with_unsigned_activations__the_same_numbers(bundle: Bundle, tmp_path: Path) -> None:
    unsigned = onnx.load(bundle.model_path("int8"))
    signed = onnx.ModelProto()
    signed.CopyFrom(unsigned)
    constants = {item.name: item for item in signed.graph.initializer}
    quantizers = {node.input[2] for node in signed.graph.node if node.op_type == "QuantizeLinear"}
    for name in quantizers:
        moved = (numpy_helper.to_array(constants[name]).astype(np.int16) - 128).astype(np.int8)
        constants[name].CopyFrom(numpy_helper.from_array(moved, name))
    del signed.graph.value_info[:]
    again = with_unsigned_activations(signed)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # the definition, not a fused kernel
    results = [
        ort.InferenceSession(model.SerializeToString(), options).run(["scores"], {"images": images})[0]
        for model in (signed, again)
    ]
    np.testing.assert_array_equal(results[0], results[1])
