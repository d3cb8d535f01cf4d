"""A real model that per-tensor INT8 ruins: one channel of one layer drowns the others."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

BROKEN = "/detector/model.3/conv/Conv"
CONSUMER = "/detector/model.4/cv1/conv/Conv"


def with_a_saturating_channel(model: onnx.ModelProto, scale: float) -> onnx.ModelProto:
    """The least used channel of `BROKEN` grows `scale`-fold and its only consumer forgets it: FP32 hardly changes."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    nodes = {node.name: node for node in broken.graph.node}
    weights = {item.name: item for item in broken.graph.initializer}

    def change(name: str, values: np.ndarray) -> None:
        weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))

    reader = numpy_helper.to_array(weights[nodes[CONSUMER].input[1]]).copy()
    channel = int(np.abs(reader).sum(axis=(0, 2, 3)).argmin())
    reader[:, channel] = 0
    change(nodes[CONSUMER].input[1], reader)
    for name in nodes[BROKEN].input[1:]:
        values = numpy_helper.to_array(weights[name]).copy()
        values[channel] = np.abs(values[channel]) * scale
        change(name, values)
    return broken
