"""What every graph pass needs: names, a copy to change, and nodes appended one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.errors import ConversionError

OPSET = 17  # the newest that TensorRT 8.x, ONNX Runtime's quantisers and OpenVINO all read
PREFIX = "edgeloop"  # of every node that a pass of ours adds


class GraphBuilder:
    """Appends named nodes to a graph; every method gives the name of what it made."""

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        self._graph, self._prefix, self._count = graph, prefix, 0

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{self._prefix}/{kind}_{self._count}"

    def node(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Adds a node with one output."""
        name = self._name(kind)
        self._graph.node.append(helper.make_node(kind, list(inputs), [output or name], name, **attributes))
        return output or name

    def constant(self, value: np.ndarray) -> str:
        """Adds an initializer."""
        name = self._name("constant")
        self._graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def split(self, source: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Adds a Split into parts of these sizes."""
        name = self._name("Split")
        outputs = [f"{name}/{index}" for index in range(len(sizes))]
        lengths = self.constant(np.array(sizes, np.int64))
        self._graph.node.append(helper.make_node("Split", [source, lengths], outputs, name, axis=axis))
        return outputs

    def top_k(self, source: str, k: int) -> tuple[str, str]:
        """Adds a TopK over axis 1: names of its values and of its indices."""
        name = self._name("TopK")
        values, indices = f"{name}/values", f"{name}/indices"
        count = self.constant(np.array([k], np.int64))
        self._graph.node.append(helper.make_node("TopK", [source, count], [values, indices], name, axis=1))
        return values, indices

    def gather_columns(self, source: str, index: str, shape: tuple[int, int, int]) -> str:
        """Of `source` (b, c, n) the columns that `index` (b, k) picks: (b, c, k)."""
        row = self.node("Unsqueeze", [index, self.constant(np.array([1], np.int64))])
        spread = self.node("Expand", [row, self.constant(np.array(shape, np.int64))])
        return self.node("GatherElements", [source, spread], axis=2)


def copy_of(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that may be changed without changing this one."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def drop_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Removes graph outputs of these names, in place."""
    kept = [output for output in model.graph.output if output.name not in names]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def shape_of_output(model: onnx.ModelProto, output: str) -> tuple[int, ...]:
    """The static shape of a graph output.

    Raises:
        ConversionError: there is no such output.
    """
    for item in model.graph.output:
        if item.name == output:
            return tuple(dim.dim_value for dim in item.type.tensor_type.shape.dim)
    known = ", ".join(item.name for item in model.graph.output)
    raise ConversionError(f"the graph has no output {output!r}; it has {known}")
