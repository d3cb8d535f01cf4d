"""A graph as a list of layers: each weighted node with what follows it up to the next one.

Sensitivity, fallback and report speak of layers by the name of their weighted node.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from converters.graph_walk import decodes_distances

WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
_MOVING = ("Slice", "Split", "Reshape", "Transpose", "MaxPool", "Resize", "Squeeze", "Unsqueeze", "Flatten", "Identity")
_DETECTION_OUTPUTS = ("boxes", "scores", "classes")


@dataclass(frozen=True, slots=True)
class Layer:
    """A weighted node and its followers.

    Attributes:
        name: of the weighted node.
        nodes: names of all nodes of the layer (activation, residual sum, concatenation, ...).
    """

    name: str
    nodes: frozenset[str]


def layers_of(model: onnx.ModelProto) -> list[Layer]:
    """The layers of a float graph in topological order, without the head's decode arithmetic."""
    ignored = set(decode_nodes(model))
    owner: dict[str, str] = {}  # tensor → weighted node that it came from last
    rank: dict[str, int] = {}
    members: dict[str, set[str]] = {}
    for node in model.graph.node:
        if node.name in ignored:
            continue
        if node.op_type in WEIGHTED:
            rank[node.name] = len(rank)
            members[node.name] = {node.name}
            current: str | None = node.name
        else:
            owners = [owner[name] for name in node.input if name in owner]
            current = max(owners, key=rank.__getitem__) if owners else None
            if current is not None:
                members[current].add(node.name)
        if current is not None:
            owner.update(dict.fromkeys(node.output, current))
    return [Layer(name, frozenset(nodes)) for name, nodes in members.items()]


def int8_layers(model: onnx.ModelProto) -> set[str]:
    """Names of the weighted nodes of a Q/DQ graph that an engine computes in INT8: both factors come out of quantizers."""
    producer = {output: node for node in model.graph.node for output in node.output}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in WEIGHTED and all(_dequantized(name, producer) for name in node.input[:2])
    }


def _dequantized(name: str, producer: dict[str, onnx.NodeProto]) -> bool:
    """Whether a tensor comes out of a quantizer, by way of nodes that only move values or pick among them."""
    node = producer.get(name)
    if node is None or node.op_type == "DequantizeLinear":
        return node is not None
    if node.op_type == "Concat":
        return all(_dequantized(source, producer) for source in node.input)
    return node.op_type in _MOVING and _dequantized(node.input[0], producer)


def decode_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes between the head's last convolutions and the outputs, and of all nodes that our passes added.

    Walks back from the detection outputs and stops at convolutions, except the one-channel one that the distribution
    focal loss decodes with.
    """
    producer = {output: node for node in model.graph.node for output in node.output}
    weights = {item.name: item for item in model.graph.initializer}
    found = {node.name for node in model.graph.node if node.name.startswith("edgeloop/")}
    open_names = [name for name in _DETECTION_OUTPUTS if name in producer]
    seen: set[str] = set()
    while open_names:
        node = producer.get(open_names.pop())
        if node is None or node.name in seen or (node.op_type == "Conv" and not decodes_distances(node, weights)):
            continue
        seen.add(node.name)
        open_names.extend(node.input)
    return sorted(found | seen)
