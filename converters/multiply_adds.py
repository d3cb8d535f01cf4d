"""How much of a graph's arithmetic each layer is: the price of FP16 in place of INT8 where no engine can be timed."""

from __future__ import annotations

import math

import onnx

from converters.layers import WEIGHTED


def multiply_adds(model: onnx.ModelProto) -> dict[str, int]:
    """Multiplications with an addition in each weighted node, by node name, at the graph's static shapes.

    Nodes whose shapes cannot be inferred are left out.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    graph = typed.graph
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.value_info, *graph.input, *graph.output):
        shapes[item.name] = tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
    found = {}
    for node in graph.node:
        if node.op_type in WEIGHTED and all(shapes.get(name) for name in (*node.input[:2], node.output[0])):
            found[node.name] = _of(node, shapes)
    return found


def _of(node: onnx.NodeProto, shapes: dict[str, tuple[int, ...]]) -> int:
    data, weights, output = (shapes[name] for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(weights[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weights[1:])
    transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return math.prod(output) * (data[0] if transposed else data[-1])
