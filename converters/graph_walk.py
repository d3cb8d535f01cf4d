"""Where things are in an exported detector: the head's last convolutions and the feature maps that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from converters.errors import ConversionError

Size = tuple[int, int]


def last_convolutions(model: onnx.ModelProto, outputs: Sequence[str]) -> list[onnx.NodeProto]:
    """The convolutions that outputs are decoded from, without another one in between; in graph order.

    The one-channel convolution with which the distribution focal loss decodes distances does not count as one.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    weights = {item.name: item for item in model.graph.initializer}
    found: set[str] = set()
    seen: set[str] = set()
    open_names = list(outputs)
    while open_names:
        name = open_names.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.op_type == "Conv" and not decodes_distances(node, weights):
            found.add(node.output[0])
        else:
            open_names.extend(node.input)
    return [node for node in model.graph.node if node.op_type == "Conv" and node.output[0] in found]


def decodes_distances(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a Conv is the DFL's: weights 0, 1, 2 … of shape (1, bins, 1, 1)."""
    weight = weights.get(node.input[1])
    if weight is None or weight.dims[0] != 1:
        return False
    values = numpy_helper.to_array(weight).reshape(-1)
    return bool(np.array_equal(values, np.arange(len(values))))


def head_features(model: onnx.ModelProto, output: str) -> list[str]:
    """The feature maps that a detection head reads, finest first: P3, P4 and P5 of a usual YOLO.

    The last convolutions are grouped by the size of their maps; each group's feature map is the latest tensor that all
    of the group's convolutions depend on.

    Raises:
        ConversionError: the graph has no convolutions before this output, or their sizes cannot be inferred.
    """
    sizes = _spatial_sizes(model)
    groups: dict[Size, list[str]] = {}
    for conv in last_convolutions(model, [output]):
        size = sizes.get(conv.output[0])
        if size is None:
            raise ConversionError(
                f"the size of {conv.output[0]!r} in the graph cannot be inferred; export the model with a fixed input shape"
            )
        groups.setdefault(size, []).append(conv.input[0])
    if not groups:
        raise ConversionError(f"output {output!r} does not come from convolutions; name the ONNX export of a YOLO detector")
    ancestors = _Ancestors(model)
    return [ancestors.latest_common(groups[size]) for size in sorted(groups, reverse=True)]


class _Ancestors:
    """Which tensors a tensor depends on."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._producers = {output: node for node in model.graph.node for output in node.output}
        self._position = {output: index for index, node in enumerate(model.graph.node) for output in node.output}

    def latest_common(self, names: Sequence[str]) -> str:
        """The tensor furthest down the graph that every one of `names` is or depends on."""
        common = set.intersection(*(self._of(name) for name in names))
        if not common:
            raise ConversionError("the head's convolutions share no feature map; name the ONNX export of a YOLO detector")
        return max(common, key=lambda name: self._position[name])

    def _of(self, name: str) -> set[str]:
        found: set[str] = set()
        open_names = [name]
        while open_names:
            current = open_names.pop()
            if current in found or current not in self._producers:
                continue
            found.add(current)
            open_names.extend(self._producers[current].input)
        return found


def _spatial_sizes(model: onnx.ModelProto) -> dict[str, Size]:
    """Height and width of every (b, c, h, w) tensor whose static shape can be inferred."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    found = {}
    for item in (*inferred.graph.value_info, *inferred.graph.output):
        dims = [dim.dim_value for dim in item.type.tensor_type.shape.dim]
        if len(dims) == 4 and all(dims):
            found[item.name] = (dims[2], dims[3])
    return found
