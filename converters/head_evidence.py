"""Which layout the output of a detector has, by its shape and by what it says about a picture of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.graph_heads import HEADS, anchor_grid, strides_of

_MOST_END_TO_END = 1000  # rows; exporters write 300
_V5_ANCHORS = 3  # a cell
_NEAR_CELLS = 2.0  # a decoded centre lies that near to its cell, in cells; YOLOX and YOLOv5 stay within 1.5


def recognised_head(path: Path, values: NDArray[Any], size_wh: tuple[int, int], told: str | None) -> str:
    """The layout of an output (1, a, b); `told` is believed where its shape allows it.

    Args:
        path: for messages.
        values: the output for a picture of noise.
        size_wh: of the canvas in pixels.
        told: what `--head` says.

    Raises:
        ConversionError: an unknown `told`, one that does not fit, or an output that fits no layout.
    """
    if told is not None and told not in HEADS:
        raise ConversionError(f"unknown head {told!r}; known are {', '.join(HEADS)}")
    shapely = _by_shape(values.shape, size_wh)
    if told is not None:
        if told not in shapely:
            raise ConversionError(
                f"{path} has output {values.shape} at {size_wh[0]}×{size_wh[1]}, which cannot be {told}: {HEADS[told].layout}; "
                f"{'possible are ' + ', '.join(shapely) if shapely else 'no known head has it'}"
            )
        return told
    found = [kind for kind in shapely if _says_so(kind, values[0], size_wh)]
    if len(found) != 1:
        known = "; ".join(f"{kind} {head.layout}" for kind, head in HEADS.items())
        raise ConversionError(f"the head of {path} with output {values.shape} is not recognised; name it with --head: {known}")
    return found[0]


def class_count(kind: str, shape: tuple[int, ...], model: onnx.ModelProto, output: str) -> int | None:
    """How many classes a head has: by its shape, or for an end-to-end head by the graph, and None where that does not say.

    Args:
        kind: of the head.
        shape: of its output.
        model: the graph, without constant arithmetic.
        output: name of its output.
    """
    if kind == "ultralytics-end2end":
        return _classes_reduced(model, output)
    return shape[1] - 4 if kind == "ultralytics" else shape[2] - 5


def _classes_reduced(model: onnx.ModelProto, output: str) -> int | None:
    """The size of the axis on which an end-to-end head seeks its best class; None where it is not the only one."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in inferred.graph.value_info}
    producers = {name: node for node in model.graph.node for name in node.output}
    sizes: set[int] = set()
    seen: set[str] = set()
    open_names = [output]
    while open_names:
        node = producers.get(open_names.pop())
        if node is None or node.op_type == "Conv" or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        open_names.extend(node.input)
        shape = shapes.get(node.input[0]) if node.input else None
        if shape and node.op_type in ("ReduceMax", "ArgMax"):
            sizes.update(shape[axis] for axis in _axes(node) if -len(shape) <= axis < len(shape))
    return sizes.pop() or None if len(sizes) == 1 else None


def _axes(node: onnx.NodeProto) -> list[int]:
    """Of a reduction before opset 18, which reduces to one place."""
    return [axis for item in node.attribute for axis in ({"axis": [item.i], "axes": item.ints}.get(item.name, ()))]


def _by_shape(shape: tuple[int, ...], size_wh: tuple[int, int]) -> list[str]:
    _, rows, columns = shape
    cells, anchors = strides_of(rows, size_wh), strides_of(rows, size_wh, _V5_ANCHORS)
    possible = {
        "ultralytics": rows > 4 and strides_of(columns, size_wh) is not None,
        "ultralytics-end2end": columns == 6 and rows <= _MOST_END_TO_END,
        "yolov5": columns > 5 and anchors is not None,
        "yolox": columns > 5 and cells is not None,
        "yolox-decoded": columns > 5 and cells is not None,
    }
    return [kind for kind, fits in possible.items() if fits]


def _says_so(kind: str, values: NDArray[Any], size_wh: tuple[int, int]) -> bool:
    if kind == "ultralytics":
        return _probabilities(values[4:]) and values[:4].max() > 2  # pixels, not shares of the canvas
    if kind == "ultralytics-end2end":
        labels = values[:, 5]
        return (
            _probabilities(values[:, 4]) and bool((labels == labels.round()).all()) and bool((np.diff(values[:, 4]) <= 0).all())
        )
    if not _probabilities(values[:, 4:]):
        return False
    per_cell = _V5_ANCHORS if kind == "yolov5" else 1
    if kind == "yolox":
        return bool(np.median(np.abs(values[:, :2] - 0.5)) < _NEAR_CELLS)
    return bool((values[:, 2:4] > 0).all()) and _centres_follow_the_grid(values[:, :2], size_wh, per_cell)


def _probabilities(values: NDArray[Any]) -> bool:
    return bool(values.min() >= 0 and values.max() <= 1 + 1e-3)


def _centres_follow_the_grid(centres: NDArray[Any], size_wh: tuple[int, int], per_cell: int) -> bool:
    """Whether centres in pixels lie near their cells, whichever way a cell's anchors are ordered (by level, then anchor)."""
    strides = strides_of(len(centres), size_wh, per_cell) or ()
    start, distances = 0, []
    for stride in strides:
        cells, _ = anchor_grid((stride,), size_wh)
        for _ in range(per_cell):
            distances.append(np.abs(centres[start : start + len(cells)] / stride - cells - 0.5))
            start += len(cells)
    return bool(np.median(np.concatenate(distances)) < _NEAR_CELLS)
