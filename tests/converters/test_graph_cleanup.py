from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters.errors import ConversionError
from converters.graph_builder import OPSET
from converters.graph_cleanup import with_batch, with_constants_folded, with_names, without_dead_ends
from converters.graph_opset import with_opset
from converters.imported import load_model
from converters.onnx_from_torch import Detector, import_detector
from converters.qdq_from_onnx import qdq_from_onnx
from tests.converters.detectors import NAMES, TinyHead, export, noise, spread_detector
from tests.converters.test_graph_passes import model_of, run


def wasteful_model() -> onnx.ModelProto:
    """Two constants that are added for every image, an Identity, and a node that nobody needs."""
    nodes = [
        helper.make_node("Add", ["one", "two"], ["three"], "constant_sum"),
        helper.make_node("Conv", ["x", "weight"], ["maps"], "conv"),
        helper.make_node("Identity", ["maps"], ["same"], "identity"),
        helper.make_node("Mul", ["same", "three"], ["y"], "scale"),
        helper.make_node("Exp", ["same"], ["nobody"], "dead"),
    ]
    one, two = np.ones(1, np.float32), np.full(1, 2, np.float32)
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    return model_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, one=one, two=two, weight=weight, unused=one)


def test_with_constants_folded__less_work_same_numbers_same_names() -> None:
    model = wasteful_model()
    before = model.SerializeToString()
    folded = with_constants_folded(model)
    x = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(folded, x=x)["y"], run(model, x=x)["y"], rtol=1e-6)
    assert {node.name for node in folded.graph.node} >= {"conv"}
    assert "Identity" not in {node.op_type for node in folded.graph.node}
    assert len(folded.graph.node) < len(model.graph.node)
    assert [item.version for item in folded.opset_import] == [OPSET]
    assert model.SerializeToString() == before


def test_without_dead_ends__only_what_the_outputs_need() -> None:
    model = wasteful_model()
    cut = without_dead_ends(model)
    assert [node.name for node in cut.graph.node] == ["constant_sum", "conv", "identity", "scale"]
    assert {item.name for item in cut.graph.initializer} == {"one", "two", "weight"}
    assert len(model.graph.node) == 5


def test_with_names__unique_and_kept() -> None:
    model = wasteful_model()
    for index, name in ((0, ""), (2, "conv"), (3, "")):
        model.graph.node[index].name = name
    names = [node.name for node in with_names(model).graph.node]
    assert len(set(names)) == 5
    assert "" not in names
    assert names[1] == "conv"


CANVASES = noise((64, 64), 5)
Outputs = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, onnx.ModelProto]:
    """A few layers that tell images apart, by precision."""
    graph = load_model(export(TinyHead("ultralytics", 64), tmp_path_factory.mktemp("tiny") / "tiny.onnx", 64)).graph
    return {"fp32": graph, "int8": qdq_from_onnx(graph, CANVASES, len(CANVASES), "cpu")}


def together_and_alone(model: onnx.ModelProto, batch: int) -> tuple[Outputs, list[Outputs]]:
    """Outputs of one batch, and of its images one by one."""
    together = run(with_batch(model, batch), images=np.concatenate(CANVASES[:batch]))
    return together, [run(model, images=canvas) for canvas in CANVASES[:batch]]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_with_batch__each_row_is_its_own_images(tiny: dict[str, onnx.ModelProto], precision: str, batch: int) -> None:
    together, alone = together_and_alone(tiny[precision], batch)
    for name, rows in together.items():
        for row, image in product(range(batch), repeat=2):
            difference = np.abs(rows[row] - alone[image][name][0]).max()
            assert difference < 1e-4 if row == image else difference > 0.01, (name, row, image)


def test_with_batch__each_row_of_a_quantised_yolo_is_its_own_images() -> None:
    """By the embedding alone: in a random YOLO, INT8 makes much of a last bit, and kernels differ by batch."""
    imported = import_detector(Detector(spread_detector("yolo11n"), "yolo11n", NAMES, 64, {}), None)
    together, alone = together_and_alone(qdq_from_onnx(imported.graph, CANVASES, len(CANVASES), "cpu"), 5)
    singles = np.concatenate([outputs["embedding"] for outputs in alone])
    distances = np.linalg.norm(together["embedding"][:, None] - singles, axis=2)
    others = distances[~np.eye(5, dtype=bool)].reshape(5, 4)
    assert (np.diag(distances) < 0.5 * others.min(axis=1)).all()


def test_with_batch__refuses_what_has_another_batch(tiny: dict[str, onnx.ModelProto]) -> None:
    model = tiny["fp32"]
    with pytest.raises(ConversionError, match="only a graph of batch 1"):
        with_batch(with_batch(model, 2), 4)
    with pytest.raises(ConversionError, match="at least one image"):
        with_batch(model, 0)


def test_with_batch__shapes_that_do_not_follow_are_told() -> None:
    """A Reshape that moves the batch inwards."""
    nodes = [
        helper.make_node("Transpose", ["images"], ["moved"], "move", perm=[1, 0]),
        helper.make_node("Reshape", ["moved", "shape"], ["flat"], "flat"),
        helper.make_node("Unsqueeze", ["flat", "zero"], ["boxes"], "unsqueeze"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("images", "boxes"))
    constants = [numpy_helper.from_array(np.array([value], np.int64), name) for name, value in (("shape", 4), ("zero", 0))]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], constants), opset_imports=[helper.make_opsetid("", OPSET)]
    )
    with pytest.raises(ConversionError, match="convert with batch 1"):
        with_batch(model, 3)


def at_opset_20() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Split", ["x"], ["left", "right"], "split", axis=1, num_outputs=2),
        helper.make_node("ReduceMax", ["left", "axes"], ["most"], "most", keepdims=1),
        helper.make_node("Cast", ["right"], ["cast"], "cast", to=TensorProto.FLOAT, saturate=1),
        helper.make_node("Mul", ["most", "cast"], ["y"], "mul"),
    ]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in (("x", [1, 4, 3]), ("y", [1, 2, 3]))
    )
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    graph = helper.make_graph(nodes, "g", [x], [y], [axes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_with_opset__down_with_the_same_numbers() -> None:
    model = at_opset_20()
    x = np.random.default_rng(1).normal(size=(1, 4, 3)).astype(np.float32)
    lowered = with_opset(model)
    np.testing.assert_allclose(run(lowered, x=x)["y"], run(model, x=x)["y"])
    assert ([item.version for item in lowered.opset_import], lowered.ir_version) == ([17], 8)
    assert Counter(node.op_type for node in lowered.graph.node) == Counter(node.op_type for node in model.graph.node)


def computed_axes(model: onnx.ModelProto) -> None:
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Shape", ["x"], ["axes"], start=0, end=1))


def new_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].CopyFrom(helper.make_node("Gelu", ["cast"], ["y"]))


def uneven_split(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def new_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[2].CopyFrom(helper.make_node("Cast", ["right"], ["cast"], to=TensorProto.FLOAT, saturate=0))


@pytest.mark.parametrize("change", [computed_axes, new_operator, uneven_split, new_attribute])
def test_with_opset__too_new(change: object) -> None:
    model = at_opset_20()
    assert callable(change)
    change(model)
    with pytest.raises(ConversionError, match="export it with opset 17"):
        with_opset(model)
