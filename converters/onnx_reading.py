"""A plain ONNX from anywhere, read so that it can do no harm, refused where it cannot be deployed, and made uniform."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # what onnx.load raises
from onnx import TensorProto, numpy_helper

from converters.errors import ConversionError
from converters.graph_builder import copy_of
from converters.graph_cleanup import with_constants_folded, with_names, without_dead_ends
from converters.graph_opset import with_opset
from converters.graph_passes import IMAGES
from converters.imported import MAX_SIDE, square_canvas
from runtime.errors import BackendError
from runtime.onnx_file import refuse_external_data
from runtime.preprocess import STRIDE

# Names of the deployed graph, which its own tensors must not have.
_RESERVED = (IMAGES, "boxes", "scores", "classes", "embedding", "predictions")
_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm", "BatchNormalization", "Mul", "Add")


def read_onnx(path: Path, imgsz: int | None) -> onnx.ModelProto:
    """Reads a detector's graph: one float input `images` (1, 3, h, w) of fixed size, standard operators, as it was saved.

    Args:
        path: the file.
        imgsz: side in pixels for a graph whose height and width are open.

    Raises:
        ConversionError: no ONNX, weights in other files, an open size without `imgsz`, or a graph that is not a plain
            float detector without NMS on a canvas that can be deployed.
    """
    if not path.is_file():
        raise ConversionError(f"no such file: {path}; name an ONNX file, a checkpoint or an architecture's YAML")
    try:
        refuse_external_data(path)  # before onnx opens anything
        model = onnx.load(path, load_external_data=False)
        _touch_every_name(model)
    except BackendError as error:
        raise ConversionError(str(error)) from error
    except (DecodeError, OSError, ValueError, TypeError) as error:
        raise ConversionError(f"{path} is no ONNX file or a damaged one ({error}); export the model again") from error
    _refuse_operators(path, model)
    _refuse_broken_weights(path, model)
    return _with_input(path, model, imgsz)


def deployable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph at opset 17, without constant arithmetic, dead ends and names that the deployed graph needs.

    Raises:
        ConversionError: its opset cannot be converted, or it is not valid ONNX.
    """
    return _with_free_names(without_dead_ends(with_constants_folded(with_opset(with_names(model)))))


def _touch_every_name(model: onnx.ModelProto) -> None:
    """Protobuf checks that text is UTF-8 only when it is looked at. Raises ValueError or TypeError where it is not."""
    graph = model.graph
    listed = (graph.input, graph.output, graph.initializer, graph.value_info, graph.node)
    names = [item.name for items in listed for item in items]
    for node in graph.node:
        names += [node.op_type, node.domain, *node.input, *node.output, *(item.name for item in node.attribute)]
    names += [text for item in model.metadata_props for text in (item.key, item.value)]
    if not all(isinstance(name, str) for name in names):
        raise TypeError("a name that is no text")


def _refuse_operators(path: Path, model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if "NMS" in node.op_type or node.op_type == "NonMaxSuppression":
            raise ConversionError(
                f"{path} does NMS inside the graph ({node.op_type}), whose open shapes stop engines; export it without NMS, "
                "the daemon does it on the host"
            )
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or node.op_type.startswith("QLinear"):
            raise ConversionError(f"{path} is quantised already ({node.op_type}); name the FP32 model that it was made from")
        if node.domain not in ("", "ai.onnx"):
            raise ConversionError(
                f"{path} uses {node.op_type} of {node.domain}, expected standard ONNX operators only; export it without plugins"
            )
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise ConversionError(f"{path} has control flow ({node.op_type}); export it with static shapes, by tracing")


def _refuse_broken_weights(path: Path, model: onnx.ModelProto) -> None:
    read = {name for node in model.graph.node if node.op_type in _WEIGHTED for name in node.input}
    for item in model.graph.initializer:
        if item.data_type == TensorProto.FLOAT16:
            raise ConversionError(f"{path} holds FP16 weights; export the model in FP32, engines make FP16 of it where it pays")
        if item.data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE) or item.name not in read:
            continue
        try:
            values = numpy_helper.to_array(item)
        except (ValueError, TypeError, KeyError) as error:
            raise ConversionError(f"{path} holds a damaged tensor {item.name!r} ({error}); export the model again") from error
        if not np.isfinite(values).all():
            raise ConversionError(f"{path} holds NaN or infinity in {item.name!r}; train the model again, or export it anew")


def _with_input(path: Path, model: onnx.ModelProto, imgsz: int | None) -> onnx.ModelProto:
    """One input, named `images`, of fixed shape."""
    model = copy_of(model)
    graph = model.graph
    constants = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in constants]  # old files list their weights too
    if len(inputs) != 1:
        names = ", ".join(item.name for item in inputs) or "none"
        raise ConversionError(f"{path} has {len(inputs)} inputs ({names}), expected one: the image; export a detector alone")
    tensor = inputs[0].type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        kind = TensorProto.DataType.Name(tensor.elem_type) if tensor.elem_type in TensorProto.DataType.values() else "unknown"
        raise ConversionError(f"{path} takes {kind}, expected FLOAT (1, 3, h, w); name the float export of the model")
    dims = [dim.dim_value for dim in tensor.shape.dim]
    if len(dims) != 4 or dims[1] not in (0, 3) or dims[0] not in (0, 1):
        raise ConversionError(f"{path} takes an input of shape {dims}, expected (1, 3, h, w); export it with batch 1 and NCHW")
    for axis, value in enumerate((1, 3, *_size(path, (dims[2], dims[3]), imgsz))):
        tensor.shape.dim[axis].dim_value = value
    name = inputs[0].name
    kept = onnx.ValueInfoProto()
    kept.CopyFrom(inputs[0])
    del graph.input[:]
    graph.input.append(kept)
    del graph.value_info[:]  # noted for the old shape
    _rename(graph, {IMAGES: _free(graph, IMAGES), name: IMAGES} if name != IMAGES else {})
    return model


def _size(path: Path, size_hw: tuple[int, int], imgsz: int | None) -> tuple[int, int]:
    if 0 in size_hw:
        if imgsz is None:
            raise ConversionError(
                f"{path} leaves height and width open, and engines need them fixed; give the side that it was trained at, like --imgsz 640"
            )
        return square_canvas(imgsz).size_wh
    if imgsz is not None and size_hw != (imgsz, imgsz):
        raise ConversionError(
            f"{path} is fixed at {size_hw[1]}×{size_hw[0]}, but --imgsz says {imgsz}; leave it out, or export it anew"
        )
    if not all(0 < side <= MAX_SIDE and side % STRIDE == 0 for side in size_hw):
        raise ConversionError(
            f"{path} takes {size_hw[1]}×{size_hw[0]}, expected multiples of {STRIDE} up to {MAX_SIDE}; export it with another size"
        )
    return size_hw


def _with_free_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Renames tensors that have a name of the deployed graph."""
    model = copy_of(model)
    outputs = {output.name for output in model.graph.output}
    _rename(model.graph, {name: _free(model.graph, name) for name in _RESERVED if name != IMAGES or name in outputs})
    return model


def _free(graph: onnx.GraphProto, name: str) -> str:
    taken = {item for node in graph.node for item in (*node.input, *node.output)} | {item.name for item in graph.initializer}
    while name in taken:
        name += "_original"
    return name


def _rename(graph: onnx.GraphProto, new_names: dict[str, str]) -> None:
    for node in graph.node:
        for field in (node.input, node.output):
            for index, name in enumerate(field):
                field[index] = new_names.get(name, name)
    for item in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        item.name = new_names.get(item.name, item.name)
