"""INT8 Q/DQ from FP32 by NNCF's post-training quantisation, in the form that a family of engines wants.

Measured against hand-made ONNX Runtime recipes, NNCF with fast bias correction loses 0.3 points of mAP where they lose
1.5 to 7.9 (shared facts, baselines.md), so the algorithm is NNCF's. Ours are its scope and the form of its result:

- `cpu`: asymmetric activations, rewritten as uint8. NNCF writes them as int8 with a zero-point near -128, which OpenVINO
  2026.4 ruined on the CPU that we measured on; the same numbers as uint8 it runs right (benchmarks/results/coco_parity.json).
- `tensorrt`: symmetric int8 with zero-point 0 everywhere and float biases: other zero-points its parser refuses.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from converters.errors import ConversionError
from converters.graph_passes import IMAGES
from converters.layers import WEIGHTED, decode_nodes
from converters.quantizer_passes import with_signed_activations, with_unsigned_activations
from runtime.errors import MissingPackageError, first_line

Family = Literal["cpu", "tensorrt"]


def qdq_from_onnx(
    model: onnx.ModelProto, batches: Iterable[NDArray[np.uint8]], count: int, family: Family, *,
    seven_bit_weights: bool = False, ranges: Any = None,
) -> onnx.ModelProto:  # fmt: skip
    """Quantises a deployed graph: per-tensor activations, per-channel symmetric weights.

    The arithmetic that turns the head's convolutions into boxes stays in float: one INT8 scale over pixels (0 to 640)
    and probabilities (0 to 1) rounds every score to zero.

    Args:
        model: the FP32 graph, left as it is.
        batches: calibration input, uint8 (b, h, w, 3); iterated more than once.
        count: how many batches to use.
        family: of engines.
        seven_bit_weights: NNCF's overflow fix in all layers and not only in the first: for CPUs without VNNI, whose
            8-bit products can overflow their 16-bit sums.
        ranges: of activations, NNCF's RangeEstimatorParameters; None for its default, the mean of every frame's extremes.
            No other was better on all models and families (benchmarks/results/range_estimators.json).

    Raises:
        MissingPackageError: nncf is not installed.
        ConversionError: NNCF refuses the graph.
    """
    nncf = import_nncf()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its progress bars; stdout is for results
            quantized = nncf.quantize(
                model,
                nncf.Dataset(batches, lambda images: {IMAGES: images}),
                preset=nncf.QuantizationPreset.MIXED if family == "cpu" else nncf.QuantizationPreset.PERFORMANCE,
                target_device=nncf.TargetDevice.CPU,
                subset_size=count,
                ignored_scope=nncf.IgnoredScope(names=float_for(family, model)),
                advanced_parameters=_parameters(nncf, family, ranges, seven_bit_weights=seven_bit_weights),
            )
    except (nncf.errors.InternalError, nncf.errors.ValidationError, nncf.errors.UnsupportedModelError, RuntimeError) as error:
        raise ConversionError(f"NNCF cannot quantise this graph: {first_line(error)}; deploy FP32 instead") from error
    return with_unsigned_activations(quantized) if family == "cpu" else with_signed_activations(quantized)


def float_for(family: Family, model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay in float: the decode arithmetic, and what INT8 only harms.

    Attention's products and softmax: in INT8 they are slower under OpenVINO (×1.05 to 1.08 of the whole of yolo11n, measured
    ad hoc) and less exact. For TensorRT also the first convolution: symmetric INT8 would halve the resolution of the image,
    which is never negative, and three channels gain nothing from INT8 kernels.
    """
    attention = [node.name for node in model.graph.node if node.op_type in ("MatMul", "Softmax")]
    stem = [node.name for node in model.graph.node if node.op_type in WEIGHTED][:1]
    return [*decode_nodes(model), *attention, *(stem if family == "tensorrt" else [])]


def _parameters(nncf: Any, family: Family, ranges: Any, *, seven_bit_weights: bool) -> Any:
    found = nncf.AdvancedQuantizationParameters()
    if ranges is not None:
        found.activations_range_estimator_params = ranges
    if family == "cpu":
        found.overflow_fix = nncf.OverflowFix.ENABLE if seven_bit_weights else nncf.OverflowFix.FIRST_LAYER
    else:
        per_tensor = nncf.quantization.advanced_parameters.QuantizationParameters(per_channel=False)  # TensorRT's rule
        found.overflow_fix, found.activations_quantization_params = nncf.OverflowFix.DISABLE, per_tensor
    return found


def median_of_extremes() -> Any:
    """Ranges from the median of every frame's smallest and largest value: one odd frame does not stretch them."""
    import_nncf()
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet  # an extra, as below

    return RangeEstimatorParametersSet.MEDIAN_MINMAX


def import_nncf() -> Any:
    """NNCF, quiet and without its telemetry.

    Raises:
        MissingPackageError: it is not installed.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime is found" on every CPU
    # NNCF otherwise sends usage data to Google Analytics and may ask for consent on the terminal.
    os.environ.setdefault("NNCF_CI", "1")
    try:
        import nncf  # an extra, and it imports OpenVINO
    except ImportError as error:
        raise MissingPackageError("nncf", "convert") from error
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf
