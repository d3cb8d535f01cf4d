from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from converters.half_floats import with_half_floats
from converters.layers import decode_nodes
from converters.quantizer_passes import with_signed_activations
from runtime.bundle import Bundle


def scores(model: onnx.ModelProto) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # FP16 kernels that the CPU lacks
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    return np.asarray(ort.InferenceSession(model.SerializeToString(), options).run(["scores"], {"images": images})[0])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_with_half_floats__same_contract_and_nearly_the_same_scores(bundle: Bundle, precision: str) -> None:
    model = onnx.load(bundle.model_path(precision))
    if precision == "int8":
        model = with_signed_activations(model)
    half = with_half_floats(model)
    assert [item.SerializeToString() for item in half.graph.input] == [item.SerializeToString() for item in model.graph.input]
    kinds = {item.name: item.type.tensor_type.elem_type for item in half.graph.output}
    assert kinds == {"boxes": 1, "scores": 1, "classes": 7, "embedding": 1}
    np.testing.assert_allclose(np.sort(scores(half)), np.sort(scores(model)), atol=0.02)
    assert half.opset_import[0].version == (19 if precision == "int8" else 17)


def test_with_half_floats__convolutions_in_fp16_decode_in_fp32(bundle: Bundle) -> None:
    model = onnx.load(bundle.model_path("fp32"))
    half = onnx.shape_inference.infer_shapes(with_half_floats(model))
    kinds = {item.name: item.type.tensor_type.elem_type for item in (*half.graph.value_info, *half.graph.output)}
    decode = set(decode_nodes(model))
    for node in half.graph.node:
        if node.name in decode:
            assert TensorProto.FLOAT16 not in {kinds.get(name) for name in node.output}, node.name
        elif node.op_type == "Conv":
            assert kinds[node.output[0]] == TensorProto.FLOAT16
    assert sum(node.op_type == "Cast" for node in half.graph.node) < 20  # only where the two meet
