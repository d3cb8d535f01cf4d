"""Counts that can be worked out by hand."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from converters.multiply_adds import multiply_adds


def test_multiply_adds__convolutions_and_products() -> None:
    weights = {
        "w": np.zeros((6, 3, 3, 3), np.float32),  # 3 → 6 channels
        "depthwise": np.zeros((6, 1, 3, 3), np.float32),
        "up": np.zeros((6, 4, 2, 2), np.float32),  # ConvTranspose: in, out
        "product": np.zeros((16, 5), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "plain", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Conv", ["a", "depthwise"], ["b"], "grouped", pads=[1, 1, 1, 1], group=6),
        helper.make_node("ConvTranspose", ["b", "up"], ["c"], "larger", strides=[2, 2]),
        helper.make_node("MatMul", ["c", "product"], ["y"], "matrix"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 16, 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    assert multiply_adds(helper.make_model(graph)) == {
        "plain": 6 * 8 * 8 * 3 * 9,
        "grouped": 6 * 8 * 8 * 9,
        "larger": 6 * 8 * 8 * 4 * 4,
        "matrix": 4 * 16 * 5 * 16,
    }
