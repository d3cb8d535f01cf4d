"""Head layouts of detectors that others export, and how each is decoded: in the graph, and in numpy to check it.

Layouts are those of the exporters of Ultralytics, of the YOLOv5 repository, and of Megvii's YOLOX (grid decode in its
demo_utils.demo_postprocess; it feeds BGR bytes without scaling).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converters.errors import ConversionError
from converters.graph_builder import PREFIX, GraphBuilder, copy_of, drop_outputs, shape_of_output
from converters.graph_passes import with_end_to_end_outputs, with_top_k
from converters.predictions import RawPredictions

PREDICTIONS = "predictions"
_STRIDE_SETS = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))  # P3–P5, P3–P6, P2–P5
Array = NDArray[np.float32]


def strides_of(anchors: int, size_wh: tuple[int, int], per_cell: int = 1) -> tuple[int, ...] | None:
    """The strides whose grids over the canvas have this many anchors; None where there are none."""
    width, height = size_wh
    for strides in _STRIDE_SETS:
        if sum((width // stride) * (height // stride) for stride in strides) * per_cell == anchors:
            return strides
    return None


def with_decoded_head(model: onnx.ModelProto, output: str, head: str, size_wh: tuple[int, int], top_k: int) -> onnx.ModelProto:
    """Replaces a head's output by `boxes`, `scores` and `classes`.

    Args:
        model: its output `output` has a static shape.
        output: name of the predictions.
        head: one of `HEADS`.
        size_wh: of the canvas in pixels.
        top_k: how many boxes leave the graph; an end-to-end head has its own number.
    """
    if head == "ultralytics-end2end":
        return with_end_to_end_outputs(model, output)
    return with_top_k(_with_dense(model, output, head, size_wh), PREDICTIONS, top_k)


def _with_dense(model: onnx.ModelProto, output: str, head: str, size_wh: tuple[int, int]) -> onnx.ModelProto:
    """Replaces the output by `predictions` (b, 4 + classes, n): corners in pixels, scores."""
    shape = shape_of_output(model, output)
    model = copy_of(model)
    build = GraphBuilder(model.graph, f"{PREFIX}/head")
    if head == "ultralytics":
        axis, classes, anchors = 1, shape[1] - 4, shape[2]
        xy, wh, scores = build.split(output, (2, 2, classes), axis)
    else:
        axis, classes, anchors = 2, shape[2] - 5, shape[1]
        xy, wh, objectness, conditional = build.split(output, (2, 2, 1, classes), axis)
        scores = build.node("Mul", [objectness, conditional])
    if head == "yolox":
        grid, strides = (build.constant(values[None]) for values in _grid(anchors, size_wh))
        xy = build.node("Mul", [build.node("Add", [xy, grid]), strides])
        wh = build.node("Mul", [build.node("Exp", [wh]), strides])
    half = build.node("Mul", [wh, build.constant(np.array(0.5, np.float32))])
    corners = [build.node("Sub", [xy, half]), build.node("Add", [xy, half])]
    joined = build.node("Concat", [*corners, scores], axis=axis)
    last = joined if axis == 1 else build.node("Transpose", [joined], perm=[0, 2, 1])
    build.node("Identity", [last], output=PREDICTIONS)
    drop_outputs(model, [output])
    dims = [shape[0], 4 + classes, anchors]
    model.graph.output.append(helper.make_tensor_value_info(PREDICTIONS, TensorProto.FLOAT, dims))
    return model


def _from_ultralytics(values: Array, size_wh: tuple[int, int], classes: int) -> RawPredictions:
    return RawPredictions(_corners(values.T[:, :4]), values.T[:, 4:])


def _from_end_to_end(values: Array, size_wh: tuple[int, int], classes: int) -> RawPredictions:
    labels = values[:, 5].astype(np.int64)
    unknown = labels[(labels < 0) | (labels >= classes)]
    if len(unknown):
        raise ConversionError(
            f"the model gives class number {unknown[0]}, but {classes} classes are named (0 to {classes - 1}); "
            "name all of its classes, in order, with --names"
        )
    scores = np.zeros((len(values), classes), np.float32)
    scores[np.arange(len(values)), labels] = values[:, 4]
    return RawPredictions(values[:, :4], scores, complete=False)


def _from_rows(values: Array, size_wh: tuple[int, int], classes: int) -> RawPredictions:
    return RawPredictions(_corners(values[:, :4]), values[:, 4:5] * values[:, 5:])


def _from_yolox(values: Array, size_wh: tuple[int, int], classes: int) -> RawPredictions:
    grid, strides = _grid(len(values), size_wh)
    decoded = np.concatenate([(values[:, :2] + grid) * strides, np.exp(values[:, 2:4]) * strides, values[:, 4:]], axis=1)
    return _from_rows(decoded, size_wh, classes)


def _corners(xywh: Array) -> Array:
    half = xywh[:, 2:] / 2
    return np.concatenate([xywh[:, :2] - half, xywh[:, :2] + half], axis=1)


def anchor_grid(strides: Sequence[int], size_wh: tuple[int, int]) -> tuple[Array, Array]:
    """Left upper corner of every cell in cells (n, 2), and its stride in pixels (n, 1); row by row, in order of strides."""
    width, height = size_wh
    cells, pixels = [], []
    for stride in strides:
        y, x = np.mgrid[: height // stride, : width // stride]
        cells.append(np.stack([x, y], axis=-1).reshape(-1, 2))
        pixels.append(np.full((len(cells[-1]), 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(pixels).astype(np.float32)


def _grid(anchors: int, size_wh: tuple[int, int]) -> tuple[Array, Array]:
    return anchor_grid(strides_of(anchors, size_wh) or (), size_wh)


@dataclass(frozen=True)
class Head:
    """One layout of a detector's output.

    Attributes:
        layout: shape and meaning, for people.
        color: channel order that its models take.
        scale: factor on a byte that its models take.
        raw: the same decoding in numpy: of the output for one image, the canvas' size in pixels and the number of classes.
            Raises ConversionError where a class number is none of them.
    """

    layout: str
    color: str
    scale: float
    raw: Callable[[Array, tuple[int, int], int], RawPredictions]


HEADS = {
    "ultralytics": Head("(1, 4 + classes, n): x, y, width, height in pixels, scores", "rgb", 1 / 255, _from_ultralytics),
    "ultralytics-end2end": Head("(1, k, 6): two corners in pixels, score, class", "rgb", 1 / 255, _from_end_to_end),
    "yolov5": Head("(1, n, 5 + classes): x, y, width, height in pixels, objectness, classes", "rgb", 1 / 255, _from_rows),
    "yolox": Head("(1, n, 5 + classes): grid offsets, logarithms of sizes, objectness, classes", "bgr", 1.0, _from_yolox),
    "yolox-decoded": Head("(1, n, 5 + classes), one anchor a cell, otherwise as yolov5", "bgr", 1.0, _from_rows),
}
