from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converters.half_floats import with_half_floats
from converters.imported import load_model
from converters.layers import decode_nodes
from converters.onnx_from_torch import Detector, import_detector
from converters.qdq_from_onnx import qdq_from_onnx
from tests.converters.detectors import NAMES, TinyHead, export, noise, spread_detector

CANVASES = noise((64, 64), 4)
Graphs = dict[str, onnx.ModelProto]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """A YOLO in FP32, and a few layers in FP32 and INT8: in a random YOLO, INT8 makes noise of a single bit of the image."""
    path = export(TinyHead("ultralytics", 64), tmp_path_factory.mktemp("tiny") / "tiny.onnx", 64)
    tiny = load_model(path).graph
    yolo = import_detector(Detector(spread_detector("yolo11n"), "yolo11n", NAMES, 64, {}), None).graph
    return {"fp32": yolo, "tiny": tiny, "int8": qdq_from_onnx(tiny, CANVASES, len(CANVASES), "tensorrt")}


def every_anchor(model: onnx.ModelProto, canvas: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes (4, n) and scores (classes, n) in the anchors' order, which rounding cannot change as it can that of the best."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.append(helper.make_tensor_value_info("predictions", TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.log_severity_level = 3  # FP16 kernels that the CPU lacks
    dense = ort.InferenceSession(shown.SerializeToString(), options).run(["predictions"], {"images": canvas})[0][0]
    return dense[:4], dense[4:]


@pytest.mark.parametrize(("precision", "px", "score"), [("fp32", 0.5, 0.003), ("int8", 0.005, 0.001)])
def test_with_half_floats__every_anchor_says_nearly_the_same(graphs: Graphs, precision: str, px: float, score: float) -> None:
    """And no anchor what it says of another image; nor is INT8 lost, whose own error is larger."""
    half = with_half_floats(graphs[precision])

    def distances(other: onnx.ModelProto, canvas: NDArray[np.uint8]) -> NDArray[np.float64]:
        pairs = zip(every_anchor(half, CANVASES[0]), every_anchor(other, canvas), strict=True)
        return np.array([np.abs(one - two).mean() for one, two in pairs]) / (px, score)

    assert (distances(graphs[precision], CANVASES[0]) < 1).all()
    assert (distances(graphs[precision], CANVASES[1]) > 10).all()
    if precision == "int8":
        assert (distances(graphs["tiny"], CANVASES[0]) > 2).all()


@pytest.mark.parametrize(("precision", "opset"), [("fp32", 17), ("int8", 19)])
def test_with_half_floats__same_contract(graphs: Graphs, precision: str, opset: int) -> None:
    model = graphs[precision]
    half = with_half_floats(model)
    assert [item.SerializeToString() for item in half.graph.input] == [item.SerializeToString() for item in model.graph.input]
    kinds = {item.name: item.type.tensor_type.elem_type for item in half.graph.output}
    assert kinds == {"boxes": 1, "scores": 1, "classes": 7, "embedding": 1}
    assert half.opset_import[0].version == opset


def test_with_half_floats__convolutions_in_fp16_decode_in_fp32(graphs: Graphs) -> None:
    model = graphs["fp32"]
    half = onnx.shape_inference.infer_shapes(with_half_floats(model))
    kinds = {item.name: item.type.tensor_type.elem_type for item in (*half.graph.value_info, *half.graph.output)}
    decode = set(decode_nodes(model))
    for node in half.graph.node:
        if node.name in decode:
            assert TensorProto.FLOAT16 not in {kinds.get(name) for name in node.output}, node.name
        elif node.op_type == "Conv":
            assert kinds[node.output[0]] == TensorProto.FLOAT16
    assert sum(node.op_type == "Cast" for node in half.graph.node) < 20  # only where the two meet
