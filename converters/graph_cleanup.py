"""Graph passes that leave what is computed as it is: constants folded, dead ends cut, free names, another batch.

None edits its argument.
"""

from __future__ import annotations

import contextlib
import logging
import sys

import onnx
from onnx import numpy_helper

from converters.errors import ConversionError
from converters.graph_builder import PREFIX, copy_of
from converters.graph_passes import IMAGES, with_uint8_bgr_input
from runtime.errors import MissingPackageError, first_line
from runtime.preprocess import Preprocess


def deployed(model: onnx.ModelProto, preprocess: Preprocess) -> onnx.ModelProto:
    """The last passes over a graph whose outputs are those of a deployed one.

    Raises:
        ConversionError: the result does not pass ONNX's checker.
    """
    model = with_uint8_bgr_input(model, preprocess.scale, swap_channels=preprocess.color == "rgb")
    model = without_dead_ends(with_constants_folded(model))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the exported graph is not valid ONNX: {error}; please report the model's name") from error
    return model


def with_constants_folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Computes what does not depend on the input, and drops Identity nodes and repeated work, by onnxslim.

    Convolutions keep their names, the graph its opset and outputs; a third of the nodes of an exported YOLO go
    (yolo11n: 563 to 354).

    Raises:
        MissingPackageError: onnxslim is not installed.
        ConversionError: onnxslim cannot read the graph.
    """
    try:
        import onnxslim  # an extra
    except ImportError as error:
        raise MissingPackageError("onnxslim", "convert") from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for results
            folded: onnx.ModelProto = onnxslim.slim(with_names(model))
    except Exception as error:
        raise ConversionError(
            f"onnxslim cannot fold the constants of this graph ({first_line(error)}); export the model again with opset 17"
        ) from error
    finally:
        logging.getLogger("onnxslim").setLevel(logging.ERROR)
    return folded


def with_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """Gives every node a name of its own, since quantisation is told by name which nodes to leave alone."""
    model = copy_of(model)
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_{len(taken)}"
        taken.add(node.name)
    return model


def without_dead_ends(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cuts nodes that no output needs, and initializers and shape notes that no node is left for."""
    model = copy_of(model)
    graph = model.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    nodes = list(reversed(kept))
    initializers = [item for item in graph.initializer if item.name in needed]
    notes = [item for item in graph.value_info if item.name in needed]
    for field, items in ((graph.node, nodes), (graph.initializer, initializers), (graph.value_info, notes)):
        del field[:]
        field.extend(items)
    return model


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Turns a deployed graph of batch 1, FP32 or Q/DQ, into one of batch `batch`.

    The batch is the outermost axis of every tensor that depends on the input, and only Reshape writes it down: there
    the leading size is multiplied. Expand broadcasts a 1, and everything else follows the shape of its input.

    Raises:
        ConversionError: the graph is not of batch 1, or its shapes do not follow.
    """
    if batch < 1:
        raise ConversionError(f"a batch holds at least one image, but got {batch}; name a positive number")
    model = copy_of(model)
    graph = model.graph
    if graph.input[0].type.tensor_type.shape.dim[0].dim_value != 1:
        raise ConversionError("only a graph of batch 1 can be given another batch; convert the model with batch 1 first")
    dynamic = _input_dependent(graph)
    constants = {item.name: item for item in graph.initializer}
    for index, node in enumerate(graph.node):
        if node.op_type == "Reshape" and node.input[0] in dynamic:
            shape = constants.get(node.input[1])
            if shape is None:
                raise ConversionError(f"node {node.name!r} reshapes to a computed shape; export the model with static shapes")
            values = numpy_helper.to_array(shape).copy()
            if values[0] > 0:  # 0 copies the size and -1 finds it
                values[0] *= batch
                own = f"{PREFIX}/batch/shape_{index}"  # the constant may be shared
                graph.initializer.append(numpy_helper.from_array(values, own))
                node.input[1] = own
    expected = {}
    for item in (graph.input[0], *graph.output):
        item.type.tensor_type.shape.dim[0].dim_value = batch
        expected[item.name] = [dim.dim_value for dim in item.type.tensor_type.shape.dim]
    del graph.value_info[:]
    _check_shapes(model, expected)
    return without_dead_ends(model)


def _input_dependent(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors whose values depend on the images."""
    found = {IMAGES}
    for node in graph.node:
        if node.op_type not in ("Shape", "ConstantOfShape") and found.intersection(node.input):
            found.update(node.output)
    return found


def _check_shapes(model: onnx.ModelProto, expected: dict[str, list[int]]) -> None:
    """Infers the outputs' shapes from the nodes alone and compares them with what is declared."""
    bare = copy_of(model)
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise ConversionError(f"the graph does not follow another batch ({first_line(error)}); convert with batch 1") from error
    for output in inferred.graph.output:
        dims = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
        if dims and all(dims) and dims != expected[output.name]:
            raise ConversionError(
                f"output {output.name!r} would have shape {dims}, expected {expected[output.name]}; convert with batch 1"
            )
