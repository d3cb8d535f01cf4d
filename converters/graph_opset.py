"""Another opset for a graph. onnx's own converter goes up; it knows no way down for what exporters write today."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper, numpy_helper, version_converter

from converters.errors import ConversionError
from converters.graph_builder import OPSET, copy_of
from runtime.errors import first_line

_STANDARD = ("", "ai.onnx")
_IR_VERSION = 8  # of opset 17, which the oldest engines read
# Operators whose axes became an input with opset 18; ReduceSum's were one before.
_REDUCTIONS = (
    "ReduceMax",
    "ReduceMin",
    "ReduceMean",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSumExp",
)


def with_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph at opset 17.

    Downwards, what newer opsets only write differently is rewritten (the parts of Split, the axes of reductions,
    attributes at their defaults), and ONNX's checker must then accept every node at opset 17. Whether the numbers stayed
    is for the comparison with the original to say.

    Raises:
        ConversionError: a node that opset 17 has no form for, or a graph that is not valid ONNX.
    """
    version = next((item.version for item in model.opset_import if item.domain in _STANDARD), 0)
    if version > onnx.defs.onnx_opset_version():
        raise ConversionError(
            f"this graph of opset {version} is too new: the onnx package here knows up to {onnx.defs.onnx_opset_version()}; "
            f"export it with opset {OPSET}"
        )
    try:
        if version > OPSET:
            changed = _down(model, version)
        else:
            onnx.checker.check_model(model)
            changed = copy_of(model) if version == OPSET else version_converter.convert_version(model, OPSET)
        changed.ir_version = min(changed.ir_version, _IR_VERSION)
        onnx.checker.check_model(changed, full_check=True)
    except ConversionError:
        raise
    except Exception as error:  # checker, inference and converter share no base, and protobuf raises its own
        reason = first_line(error)
        kind = "is too new for" if version > OPSET else "cannot be brought to"
        raise ConversionError(
            f"this graph of opset {version} {kind} opset {OPSET} ({reason}); export it with opset {OPSET} "
            "and, if --imgsz was given, for that size"
        ) from error
    return changed


def _down(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    model = copy_of(model)
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    constants |= {node.output[0]: item.t for node in graph.node if node.op_type == "Constant" for item in node.attribute}
    for node in graph.node:
        if node.op_type == "Split" and len(node.input) < 2:
            _drop(node, "num_outputs")  # at opset 17 even parts need no number; uneven ones then fail in the checker
        if node.op_type in _REDUCTIONS:
            _axes_as_attribute(node, constants)
        _drop_defaults(node, version)
    for item in model.opset_import:
        if item.domain in _STANDARD:
            item.version = OPSET
    return model


def _axes_as_attribute(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> None:
    if len(node.input) < 2:
        return
    axes = constants.get(node.input[1])
    if axes is None:
        raise ConversionError(f"node {node.name!r} computes its axes, which opset {OPSET} cannot; export it with opset {OPSET}")
    node.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(axes).reshape(-1).tolist()))
    del node.input[1:]


def _drop_defaults(node: onnx.NodeProto, version: int) -> None:
    """Drops attributes that opset 17 does not know and that say what is meant anyway."""
    try:
        old, new = onnx.defs.get_schema(node.op_type, OPSET), onnx.defs.get_schema(node.op_type, version)
    except onnx.defs.SchemaError as error:
        raise ConversionError(
            f"operator {node.op_type} does not exist at opset {OPSET}, where this graph has {version}; export it with opset {OPSET}"
        ) from error
    for item in list(node.attribute):
        known = item.name in old.attributes or item.name not in new.attributes
        if not known and helper.get_attribute_value(item) == helper.get_attribute_value(
            new.attributes[item.name].default_value
        ):
            _drop(node, item.name)


def _drop(node: onnx.NodeProto, attribute: str) -> None:
    kept = [item for item in node.attribute if item.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)
