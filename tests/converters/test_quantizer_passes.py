from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from converters.errors import ConversionError
from converters.layers import Layer, layers_of
from converters.quantizer_passes import (
    ranges_of,
    with_float_layers,
    with_float_weights,
    with_signed_activations,
    with_unsigned_activations,
)
from runtime.bundle import Bundle

OUTPUTS = ["boxes", "scores"]


@pytest.fixture(scope="module")
def fp32(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.model_path("fp32"))


@pytest.fixture(scope="module")
def int8(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.model_path("int8"))


def run(model: onnx.ModelProto) -> list[NDArray[np.float32]]:
    """By the definition of the operators, not by a fused kernel."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    found: list[NDArray[np.float32]] = ort.InferenceSession(model.SerializeToString(), options).run(OUTPUTS, {"images": images})
    return found


def zero_points(model: onnx.ModelProto) -> list[NDArray[np.integer]]:
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    return [
        constants[node.input[2]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    ]


def as_nncf_writes(unsigned: onnx.ModelProto) -> onnx.ModelProto:
    """The CPU form with its zero-points moved back by 128."""
    signed = onnx.ModelProto()
    signed.CopyFrom(unsigned)
    constants = {item.name: item for item in signed.graph.initializer}
    for name in {node.input[2] for node in signed.graph.node if node.op_type == "QuantizeLinear"}:
        moved = (numpy_helper.to_array(constants[name]).astype(np.int16) - 128).astype(np.int8)
        constants[name].CopyFrom(numpy_helper.from_array(moved, name))
    del signed.graph.value_info[:]
    return signed


def test_with_unsigned_activations__the_same_numbers(int8: onnx.ModelProto) -> None:
    signed = as_nncf_writes(int8)
    again = with_unsigned_activations(signed)
    assert {zero.dtype for zero in zero_points(again)} == {np.dtype(np.uint8)}
    np.testing.assert_array_equal(run(signed)[1], run(again)[1])


def test_with_signed_activations__zero_points_zero_and_ranges_no_smaller(int8: onnx.ModelProto) -> None:
    signed = with_signed_activations(int8)
    found = zero_points(signed)
    assert {zero.dtype for zero in found} == {np.dtype(np.int8)}
    assert not any(zero.any() for zero in found)
    for before, after in zip(ranges_of(int8), ranges_of(signed), strict=True):
        assert before.tensor == after.tensor
        assert all(np.array(after.low) <= np.array(before.low) + 1e-6)
        assert all(np.array(after.high) >= np.array(before.high) * (1 - 1e-6))


def test_with_float_weights__the_same_numbers_without_int8_constants(int8: onnx.ModelProto) -> None:
    floats = with_float_weights(int8)
    constants = {item.name: item for item in floats.graph.initializer}
    pairs = [node for node in floats.graph.node if node.op_type == "DequantizeLinear"]
    assert not any(node.input[0] in constants for node in pairs)
    for ours, theirs in zip(run(floats), run(int8), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_with_float_layers__all_of_them_give_fp32(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    back = with_float_layers(int8, fp32, layers_of(fp32))
    assert not any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in back.graph.node)
    for ours, theirs in zip(run(back), run(fp32), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_with_float_layers__one_has_no_quantizer_behind_it_and_fp32s_weights(
    fp32: onnx.ModelProto, int8: onnx.ModelProto
) -> None:
    layer = next(item for item in layers_of(fp32) if item.name.endswith("/model.3/conv/Conv"))
    back = with_float_layers(int8, fp32, [layer])
    made = {name for node in back.graph.node if node.name in layer.nodes for name in node.output}
    assert not any(node.op_type == "QuantizeLinear" and node.input[0] in made for node in back.graph.node)
    original = next(node for node in fp32.graph.node if node.name == layer.name)
    node = next(node for node in back.graph.node if node.name == layer.name)
    theirs, ours = ({item.name: item for item in model.graph.initializer} for model in (fp32, back))
    for name, restored in zip(original.input[1:], node.input[1:], strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(theirs[name]), numpy_helper.to_array(ours[restored]))
    assert len(ranges_of(back)) == len(ranges_of(int8)) - 1


def test_with_float_layers__unknown(fp32: onnx.ModelProto, int8: onnx.ModelProto) -> None:
    with pytest.raises(ConversionError, match="has no layer other"):
        with_float_layers(int8, fp32, [Layer("other", frozenset(["other"]))])


def test_layers_of__each_node_once_weighted_node_first(fp32: onnx.ModelProto) -> None:
    layers = layers_of(fp32)
    members = [name for layer in layers for name in layer.nodes]
    assert len(members) == len(set(members))
    assert len(layers) == 89  # yolo11n: 87 convolutions beside the DFL's, 2 matrix products of the attention
    stem = layers[0]
    assert {name.rsplit("/", 1)[-1] for name in stem.nodes} == {"Conv", "Sigmoid", "Mul"}
