from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters.errors import ConversionError
from converters.graph_builder import OPSET
from converters.graph_passes import with_embedding, with_end_to_end_outputs, with_top_k, with_uint8_bgr_input


def model_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], outputs: dict[str, list[int]], **constants: NDArray[np.float32]
) -> onnx.ModelProto:
    def values(shapes: dict[str, list[int]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "test", values(inputs), values(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def run(model: onnx.ModelProto, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def conv_model() -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["images", "weight"], ["features"], "conv", pads=[1, 1, 1, 1])
    return model_of([node], {"images": [1, 3, 8, 6]}, {"features": [1, 4, 8, 6]}, weight=weight)


@pytest.mark.parametrize("swap", [True, False])
def test_with_uint8_bgr_input__same_result_as_float_rgb(swap: bool) -> None:
    model = conv_model()
    before = model.SerializeToString()
    images = np.random.default_rng(1).integers(0, 256, (1, 8, 6, 3), dtype=np.uint8)
    seen = images[..., ::-1] if swap else images
    expected = run(model, images=np.ascontiguousarray(seen.transpose(0, 3, 1, 2)).astype(np.float32) / 255)["features"]
    changed = with_uint8_bgr_input(model, 1 / 255, swap_channels=swap)
    np.testing.assert_allclose(run(changed, images=images)["features"], expected, atol=1e-4)
    assert model.SerializeToString() == before
    assert [node.op_type for node in changed.graph.node[:2]] == ["Cast", "Transpose"]  # TensorRT rejects a uint8 Transpose


@pytest.mark.parametrize(("swap", "scale", "kinds"), [(False, 1.0, 2), (True, 1.0, 3), (False, 1 / 255, 3), (True, 1 / 255, 4)])
def test_with_uint8_bgr_input__nodes_where_there_is_no_convolution_to_fold_into(swap: bool, scale: float, kinds: int) -> None:
    node = helper.make_node("Relu", ["images"], ["features"], "relu")
    model = model_of([node], {"images": [1, 3, 8, 6]}, {"features": [1, 3, 8, 6]})
    images = np.random.default_rng(1).integers(0, 256, (1, 8, 6, 3), dtype=np.uint8)
    changed = with_uint8_bgr_input(model, scale, swap_channels=swap)
    seen = images[..., ::-1] if swap else images
    np.testing.assert_allclose(
        run(changed, images=images)["features"], seen.transpose(0, 3, 1, 2) * np.float32(scale), rtol=1e-6
    )
    assert len(changed.graph.node) == kinds + 1


def test_with_uint8_bgr_input__a_weight_that_others_use_stays() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["once"], "first"),
        helper.make_node("Conv", ["once", "weight"], ["features"], "second"),
    ]
    model = model_of(nodes, {"images": [1, 3, 8, 6]}, {"features": [1, 3, 8, 6]}, weight=weight)
    images = np.random.default_rng(1).integers(0, 256, (1, 8, 6, 3), dtype=np.uint8)
    expected = run(model, images=images[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255)["features"]
    found = run(with_uint8_bgr_input(model, 1 / 255, swap_channels=True), images=images)["features"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def identity_model(shape: list[int]) -> onnx.ModelProto:
    node = helper.make_node("Identity", ["x"], ["predictions"], "identity")
    return model_of([node], {"x": shape}, {"predictions": shape})


@pytest.mark.parametrize(("batch", "classes", "anchors", "k"), [(1, 5, 40, 10), (2, 1, 30, 10), (1, 80, 7, 10), (3, 2, 25, 25)])
def test_with_top_k__the_best_pairs_of_all_anchors_and_classes(batch: int, classes: int, anchors: int, k: int) -> None:
    predictions = np.random.default_rng(2).random((batch, 4 + classes, anchors)).astype(np.float32)
    found = run(with_top_k(identity_model([batch, 4 + classes, anchors]), "predictions", k), x=predictions)
    kept = min(k, anchors)
    assert found["boxes"].shape == (batch, kept, 4)
    for row in range(batch):
        scores = predictions[row, 4:]  # (classes, anchors)
        order = np.argsort(-scores, axis=None)[:kept]
        class_id, anchor = np.unravel_index(order, scores.shape)
        np.testing.assert_allclose(found["scores"][row], scores[class_id, anchor], rtol=1e-6)
        np.testing.assert_array_equal(found["classes"][row], class_id)
        np.testing.assert_allclose(found["boxes"][row], predictions[row, :4, anchor], rtol=1e-6)


def test_with_end_to_end_outputs__splits_rows() -> None:
    rows = np.random.default_rng(3).random((2, 5, 6)).astype(np.float32)
    rows[..., 5] = np.arange(5)
    found = run(with_end_to_end_outputs(identity_model([2, 5, 6]), "predictions"), x=rows)
    np.testing.assert_allclose(found["boxes"], rows[..., :4])
    np.testing.assert_allclose(found["scores"], rows[..., 4])
    np.testing.assert_array_equal(found["classes"], np.tile(np.arange(5), (2, 1)))


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_with_embedding__pooled_joined_unit_length(scale: float) -> None:
    nodes = [helper.make_node("Identity", [f"x{i}"], [f"p{i}"], f"identity{i}") for i in (3, 4)]
    shapes = {3: [2, 4, 6, 6], 4: [2, 8, 3, 3]}
    model = model_of(nodes, {f"x{i}": shapes[i] for i in shapes}, {f"p{i}": shapes[i] for i in shapes})
    maps = {f"x{i}": (scale * np.random.default_rng(i).normal(size=shape)).astype(np.float32) for i, shape in shapes.items()}
    found = run(with_embedding(model, ["p3", "p4"]), **maps)
    joined = np.concatenate([value.mean(axis=(2, 3)) for value in maps.values()], axis=1)
    expected = joined / np.maximum(np.linalg.norm(joined, axis=1, keepdims=True), 1e-12)
    assert list(found) == ["embedding"]
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)


def test_with_top_k__unknown_output() -> None:
    with pytest.raises(ConversionError, match="no output 'missing'; it has predictions"):
        with_top_k(identity_model([1, 6, 9]), "missing", 3)
