"""From a plain ONNX made elsewhere to the deployed graph: its head recognised by evidence, decoded and checked."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from converters.errors import ConversionError
from converters.graph_builder import copy_of
from converters.graph_cleanup import deployed
from converters.graph_heads import HEADS, with_decoded_head
from converters.graph_passes import IMAGES, TOP_K, uses_nms, with_embedding
from converters.graph_walk import head_features
from converters.head_evidence import class_count, recognised_head
from converters.imported import ImportedModel, ImportOptions
from converters.onnx_reading import deployable, read_onnx
from converters.predictions import RawPredictions, Reference
from converters.sessions import Session, open_session
from runtime.preprocess import Preprocess

_METADATA_CHARACTERS = 1 << 20  # names of a thousand classes take 20 kB


def import_onnx(path: Path, options: ImportOptions) -> ImportedModel:
    """A detector's ONNX export as a deployed graph, with its own predictions beside it.

    Raises:
        ConversionError: a file that is unsafe or damaged, a graph that cannot be deployed, or a head that is not known.
    """
    try:
        return _import(path, options)
    except ConversionError as error:
        if str(path) in str(error):
            raise
        raise ConversionError(f"{path}: {error}") from error


def _import(path: Path, options: ImportOptions) -> ImportedModel:
    original = read_onnx(path, options.imgsz)
    size_wh = _canvas_size(original)
    metadata = _metadata(original)
    if metadata.get("task", "detect") != "detect":
        raise ConversionError(f"{path} is a model for the task {metadata['task']!r}; only detectors can be converted")
    session = open_session(original)
    outputs = session.run(None, {IMAGES: _noise(size_wh)})
    position = _predictions(path, outputs)
    values = outputs[position]
    kind = recognised_head(path, values, size_wh, options.head)
    plain = deployable(original)
    classes = class_count(kind, values.shape, plain, plain.graph.output[position].name)
    names = _class_names(path, classes, options.names or _names_in(metadata))
    preprocess = Preprocess(size_wh, color=HEADS[kind].color, scale=HEADS[kind].scale)
    graph = _deployed_graph(plain, position, values.shape, kind, preprocess)
    lineage = {
        "source": path.name,
        "head": kind if options.head else f"{kind}, recognised",
        "input": f"{preprocess.color.upper()}, bytes × {preprocess.scale:.6g}, assumed of this head",
    }
    reference = _reference(session, position, kind, preprocess, len(names))
    return ImportedModel(graph, path.stem, names, preprocess, uses_nms(graph), reference, lineage)


def _deployed_graph(
    model: onnx.ModelProto, position: int, shape: tuple[int, ...], kind: str, preprocess: Preprocess
) -> onnx.ModelProto:
    """Decodes the output at `position`, adds the embedding of the feature maps that the head reads, and folds the input."""
    predictions = model.graph.output[position].name
    features = head_features(model, predictions)
    model = _with_outputs(model, {predictions: shape, **_shapes(model, features)})
    model = with_decoded_head(model, predictions, kind, preprocess.size_wh, TOP_K)
    return deployed(with_embedding(model, features), preprocess)


def _reference(session: Session, position: int, kind: str, preprocess: Preprocess, classes: int) -> Reference:
    """The original graph's output, decoded in numpy."""

    def predict(canvas: NDArray[np.uint8]) -> RawPredictions:
        seen = canvas[..., ::-1] if preprocess.color == "rgb" else canvas
        images = np.ascontiguousarray(seen.transpose(0, 3, 1, 2)).astype(np.float32) * np.float32(preprocess.scale)
        values = np.asarray(session.run(None, {IMAGES: images})[position][0], np.float32)
        return HEADS[kind].raw(values, preprocess.size_wh, classes)

    return predict


def _noise(size_wh: tuple[int, int]) -> NDArray[np.float32]:
    width, height = size_wh
    return np.random.default_rng(0).random((1, 3, height, width), np.float32)


def _canvas_size(model: onnx.ModelProto) -> tuple[int, int]:
    _, _, height, width = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim)
    return width, height


def _predictions(path: Path, values: Sequence[NDArray[Any]]) -> int:
    """Which of the outputs are the predictions: the one (1, a, b). The raw maps of YOLOv5 (5 axes) may stand beside it."""
    shapes = [value.shape for value in values]
    found = [index for index, shape in enumerate(shapes) if len(shape) == 3 and shape[0] == 1 and min(shape) > 0]
    fitting = all(len(value.shape) in (3, 5) and value.dtype.kind == "f" for value in values)
    if len(found) != 1 or not fitting:
        raise ConversionError(
            f"{path} has outputs {', '.join(f'{value.dtype} {value.shape}' for value in values)}, "
            "expected one float (1, a, b) as detectors have; only detectors can be converted"
        )
    return found[0]


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {item.key: item.value[:_METADATA_CHARACTERS] for item in model.metadata_props}


def _names_in(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    """The class names that Ultralytics' exporter writes, a Python literal {0: 'person', …}; None where there are none."""
    try:
        found = ast.literal_eval(metadata.get("names", ""))
        values = [found[index] for index in range(len(found))]
    except (ValueError, SyntaxError, TypeError, LookupError, RecursionError, MemoryError):
        return None
    return tuple(str(value) for value in values) or None


def _class_names(path: Path, classes: int | None, names: tuple[str, ...] | None) -> tuple[str, ...]:
    if classes is None:  # an end-to-end head of another make, which gives class numbers only
        if names is None:
            raise ConversionError(f"{path} does not say how many classes it has; name them with --names a,b,c")
        return names
    if names is None:
        return tuple(f"class_{index}" for index in range(classes))
    if len(names) != classes:
        raise ConversionError(f"{path} has {classes} classes, but {len(names)} names were given; name exactly {classes}")
    return names


def _shapes(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    known = {item.name: item for item in (*inferred.graph.value_info, *inferred.graph.output)}
    return {name: tuple(dim.dim_value for dim in known[name].type.tensor_type.shape.dim) for name in names}


def _with_outputs(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    model = copy_of(model)
    del model.graph.output[:]
    for name, shape in shapes.items():
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model
