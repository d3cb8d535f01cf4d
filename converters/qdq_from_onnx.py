"""INT8 Q/DQ from FP32 by NNCF's post-training quantisation.

Measured against hand-made ONNX Runtime recipes, NNCF with fast bias correction loses 0.3 points of mAP where they lose
1.5 to 7.9 (shared facts, baselines.md), so the algorithm is NNCF's. Ours are its scope and one exact rewriting: NNCF
writes activations as int8 with a zero-point near -128, which OpenVINO 2026.4 ruined on the CPU that we measured on; the
same numbers as uint8 with a zero-point near 0 it runs right (benchmarks/results/coco_parity.json). Why was not found out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from converters.errors import ConversionError
from converters.graph_passes import IMAGES
from runtime.errors import MissingPackageError

_DETECTION_OUTPUTS = ("boxes", "scores", "classes")


def qdq_from_onnx(model: onnx.ModelProto, batches: Iterable[NDArray[np.uint8]], count: int) -> onnx.ModelProto:
    """Quantises a deployed graph: per-tensor unsigned activations, per-channel signed weights (for CPUs).

    The arithmetic that turns the head's convolutions into boxes stays in float: one INT8 scale over pixels (0 to 640)
    and probabilities (0 to 1) rounds every score to zero.

    Args:
        model: the FP32 graph, left as it is.
        batches: calibration input, uint8 (b, h, w, 3); iterated more than once.
        count: how many batches to use.

    Raises:
        MissingPackageError: nncf is not installed.
        ConversionError: NNCF refuses the graph.
    """
    nncf = _import_nncf()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its progress bars; stdout is for results
            quantized = nncf.quantize(
                model,
                nncf.Dataset(batches, lambda images: {IMAGES: images}),
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=count,
                ignored_scope=nncf.IgnoredScope(names=decode_nodes(model)),
            )
    except (nncf.errors.InternalError, nncf.errors.ValidationError, nncf.errors.UnsupportedModelError, RuntimeError) as error:
        raise ConversionError(f"NNCF cannot quantise this graph: {str(error).splitlines()[0]}; deploy FP32 instead") from error
    return with_unsigned_activations(quantized)


def with_unsigned_activations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrites int8 activations as uint8 with the zero-point moved by 128: the same real numbers, other bytes.

    Weights, which are stored quantised and have no QuantizeLinear, stay int8.
    """
    rewritten = onnx.ModelProto()
    rewritten.CopyFrom(model)
    constants = {item.name: item for item in rewritten.graph.initializer}
    pairs = [
        node
        for node in rewritten.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in constants
    ]
    for name in {node.input[2] for node in pairs}:
        zero_point = numpy_helper.to_array(constants[name])
        if zero_point.dtype == np.int8:
            moved = (zero_point.astype(np.int16) + 128).astype(np.uint8)
            constants[name].CopyFrom(numpy_helper.from_array(moved, name))
    quantized = {node.output[0] for node in pairs if node.op_type == "QuantizeLinear"}
    for info in rewritten.graph.value_info:
        if info.name in quantized:
            info.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.checker.check_model(rewritten)
    return rewritten


def decode_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes between the head's last convolutions and the outputs, and of all nodes that our passes added.

    Walks back from the detection outputs and stops at convolutions, except the one-channel one that the distribution
    focal loss decodes with.
    """
    producer = {output: node for node in model.graph.node for output in node.output}
    weights = {item.name: item for item in model.graph.initializer}
    found = {node.name for node in model.graph.node if node.name.startswith("edgeloop/")}
    open_names = [name for name in _DETECTION_OUTPUTS if name in producer]
    seen: set[str] = set()
    while open_names:
        node = producer.get(open_names.pop())
        if node is None or node.name in seen or (node.op_type == "Conv" and not _decodes_distances(node, weights)):
            continue
        seen.add(node.name)
        open_names.extend(node.input)
    return sorted(found | seen)


def _decodes_distances(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    """Whether a Conv is the DFL's: weights 0, 1, 2 … of shape (1, bins, 1, 1)."""
    weight = weights.get(node.input[1])
    if weight is None or weight.dims[0] != 1:
        return False
    values = numpy_helper.to_array(weight).reshape(-1)
    return bool(np.array_equal(values, np.arange(len(values))))


def _import_nncf() -> Any:
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime is found" on every CPU
    # NNCF otherwise sends usage data to Google Analytics and may ask for consent on the terminal.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf  # an extra, and it imports OpenVINO
    except ImportError as error:
        raise MissingPackageError("nncf", "convert") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)

    return nncf
