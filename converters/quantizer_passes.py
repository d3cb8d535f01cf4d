"""Small functions Q/DQ ONNX → Q/DQ ONNX: the same calibration in the form that each family of engines wants.

None edits its argument. A quantizer is a QuantizeLinear with the DequantizeLinear behind it; weights are stored quantised
and have a DequantizeLinear only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from converters.errors import ConversionError
from converters.graph_cleanup import without_dead_ends
from converters.layers import Layer, layers_of


@dataclass(frozen=True, slots=True)
class Range:
    """What an activation quantizer can represent.

    Attributes:
        tensor: name of the float tensor before it.
        low, high: smallest and largest real value, one of each or one a channel (NNCF's depthwise convolutions for CPUs).
    """

    tensor: str
    low: tuple[float, ...]
    high: tuple[float, ...]


def ranges_of(model: onnx.ModelProto) -> list[Range]:
    """The ranges of all activation quantizers, in topological order."""
    constants = {item.name: item for item in model.graph.initializer}
    found = []
    for node in _quantize_nodes(model):
        scale, zero_point = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
        info = np.iinfo(zero_point.dtype)
        low, high = ((limit - zero_point.astype(np.float64)) * scale for limit in (info.min, info.max))
        found.append(Range(node.input[0], tuple(np.ravel(low).tolist()), tuple(np.ravel(high).tolist())))
    return found


def with_unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites int8 activations as uint8 with the zero-point moved by 128: the same real numbers, for CPU engines."""
    rewritten, constants = _copied(model)
    for name in {node.input[2] for node in _quantize_nodes(rewritten)}:
        zero_point = numpy_helper.to_array(constants[name])
        if zero_point.dtype == np.int8:
            moved = (zero_point.astype(np.int16) + 128).astype(np.uint8)
            constants[name].CopyFrom(numpy_helper.from_array(moved, name))
    return _checked(rewritten)


def with_signed_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes every activation quantizer int8 with zero-point 0, the only form that TensorRT takes.

    NNCF's symmetric preset leaves a few unsigned ones (image, softmax); their scale grows so that the range stays whole.
    """
    rewritten, constants = _copied(model)
    done: set[str] = set()
    for node in _quantize_nodes(rewritten):
        scale_name, zero_name = node.input[1:3]
        zero_point = numpy_helper.to_array(constants[zero_name])
        if zero_name in done or (zero_point.dtype == np.int8 and not zero_point.any()):
            continue
        done.add(zero_name)
        info = np.iinfo(zero_point.dtype)
        offset = zero_point.astype(np.float64)
        reach = np.maximum(offset - info.min, info.max - offset)
        scale = numpy_helper.to_array(constants[scale_name]) * reach / 127
        constants[scale_name].CopyFrom(numpy_helper.from_array(scale.astype(np.float32), scale_name))
        constants[zero_name].CopyFrom(numpy_helper.from_array(np.zeros_like(zero_point, np.int8), zero_name))
    return _checked(rewritten)


def with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Stores weights as float with a Q/DQ pair behind them, as the parsers of TensorRT 8.x want them; values unchanged."""
    rewritten, constants = _copied(model)
    pairs: list[tuple[int, onnx.NodeProto]] = []
    for place, node in enumerate(rewritten.graph.node):
        if node.op_type != "DequantizeLinear" or node.input[0] not in constants:
            continue
        quantised = numpy_helper.to_array(constants[node.input[0]])
        scale = numpy_helper.to_array(constants[node.input[1]])
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        shape = [-1 if dim == axis else 1 for dim in range(quantised.ndim)] if scale.ndim else []
        weight = f"{node.input[0]}/float"
        values = quantised.astype(np.float32) * scale.reshape(shape)
        rewritten.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), weight))
        output = f"{node.input[0]}/quantized"
        pairs.append(
            (place, helper.make_node("QuantizeLinear", [weight, *node.input[1:]], [output], f"{node.name}/quantize", axis=axis))
        )
        node.input[0] = output
    for place, node in reversed(pairs):
        rewritten.graph.node.insert(place, node)
    return _checked(without_dead_ends(rewritten))


def with_float_layers(model: onnx.ModelProto, fp32: onnx.ModelProto, layers: Collection[Layer]) -> onnx.ModelProto:
    """Returns layers to float: no quantizer behind them, and FP32's own weights and biases.

    The quantizer before a layer belongs to the layer that made the tensor, so that each has one owner and harm is laid at
    the right door; that of the image belongs to the first layer.

    Args:
        model: Q/DQ graph made from `fp32`; weighted nodes have the same names in both.
        fp32: the float graph.
        layers: of `fp32`, see `converters.layers`.

    Raises:
        ConversionError: a layer is not in the graph.
    """
    rewritten, constants = _copied(model)
    weighted = {layer.name for layer in layers}
    inside = {name for layer in layers for name in layer.nodes}
    missing = weighted - {node.name for node in rewritten.graph.node}
    if missing:
        raise ConversionError(f"the quantised graph has no layer {sorted(missing)[0]}; it was made from another model")
    owned = {name for layer in layers_of(fp32) for name in layer.nodes}
    producer = {output: node for node in rewritten.graph.node for output in node.output}
    for node in rewritten.graph.node:
        for place, name in enumerate(node.input):
            source = _float_source(name, producer)
            made_by = producer[source].name if source in producer else ""
            if source is not None and (made_by in inside or (made_by not in owned and node.name in inside)):
                node.input[place] = source
    originals = {node.name: node for node in fp32.graph.node if node.name in weighted}
    weights = {item.name: item for item in fp32.graph.initializer}
    for node in rewritten.graph.node:
        if node.name in originals:
            _restore_weights(rewritten, node, originals[node.name], weights, constants)
    return _checked(without_dead_ends(rewritten))


def _restore_weights(
    model: onnx.ModelProto, node: onnx.NodeProto, original: onnx.NodeProto,
    weights: Mapping[str, onnx.TensorProto], constants: dict[str, onnx.TensorProto],
) -> None:  # fmt: skip
    for place, name in enumerate(original.input):
        if name not in weights:
            continue
        restored = f"{name}/restored"
        if restored not in constants:
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(weights[name])
            tensor.name = restored
            constants[restored] = tensor
        node.input[place] = restored


def _float_source(name: str, producer: Mapping[str, onnx.NodeProto]) -> str | None:
    """The float tensor before the quantizer that `name` came out of; None when it came from none."""
    dequantize = producer.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    quantize = producer.get(dequantize.input[0])
    return quantize.input[0] if quantize is not None and quantize.op_type == "QuantizeLinear" else None


def _quantize_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Quantizers of activations: those of weights, if any, have a constant before them."""
    constants = {item.name for item in model.graph.initializer}
    return (node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants)


def _copied(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, onnx.TensorProto]]:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    copied.graph.ClearField("value_info")  # the quantiser's are stale; every engine infers them anyway
    return copied, {item.name: item for item in copied.graph.initializer}


def _checked(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    return model
