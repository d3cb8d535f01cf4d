"""Are the graphs of a bundle what its manifest says, and the ranges of its INT8 files those that were calibrated?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # what onnx.load raises
from onnx import TensorProto, numpy_helper

from converters.calibration_file import CALIBRATION_FILE, calibration_bytes, key_of
from converters.errors import ConversionError
from converters.quantizer_passes import Range, ranges_of
from runtime.bundle import Bundle
from runtime.errors import first_line
from runtime.files import sha256_of_file
from runtime.manifest import Calibration, Variant
from runtime.onnx_file import refuse_external_data

# What the readers of a damaged ONNX raise.
_DAMAGED = (
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError, DecodeError, ValueError, RuntimeError, TypeError,
)  # fmt: skip
# What rounding a scale to FP16 moves a range by: a share of it, and at least half of FP16's smallest step, 128 times.
_HALF, _HALF_LEAST = 2.0**-11, 128 * 2.0**-25


def checked_graph(bundle: Bundle, variant: Variant) -> onnx.ModelProto:
    """A variant's graph, valid, of finite weights, and with the inputs and outputs that the manifest promises.

    Raises:
        BackendError: it keeps weights elsewhere.
        ConversionError: anything else is wrong with it.
    """
    path = bundle.path / variant.file
    refuse_external_data(path)
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model, full_check=True)  # with shapes and types that follow from the nodes
        floats = (item for item in model.graph.initializer if item.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16))
        finite = all(np.isfinite(numpy_helper.to_array(item)).all() for item in floats)
        found, promised = _told(model), _promised(bundle, variant)
    except _DAMAGED as error:
        raise ConversionError(f"{path} is not valid ONNX: {first_line(error)}; convert the model again") from error
    if not finite:
        raise ConversionError(f"{path} holds NaN or infinity; train or convert the model again")
    if found != promised:
        raise ConversionError(f"{path} has {found}, but the manifest says {promised}; convert the model again")
    return model


def _promised(bundle: Bundle, variant: Variant) -> str:
    """DESIGN §3, in the words of `_told`."""
    (width, height), outputs, batch = bundle.manifest.preprocess.size_wh, bundle.manifest.outputs, variant.batch
    return (
        f"images uint8 {[batch, height, width, 3]} → boxes float {[batch, outputs.top_k, 4]}, scores float {[batch, outputs.top_k]}, "
        f"classes int64 {[batch, outputs.top_k]}, embedding float {[batch, outputs.embedding_dim]}"
    )


def _told(model: onnx.ModelProto) -> str:
    return " → ".join(", ".join(map(_tensor, items)) for items in (model.graph.input, model.graph.output))


def _tensor(item: onnx.ValueInfoProto) -> str:
    kind = item.type.tensor_type
    return f"{item.name} {TensorProto.DataType.Name(kind.elem_type).lower()} {[dim.dim_value for dim in kind.shape.dim]}"


def check_calibration(bundle: Bundle, graphs: Mapping[str, onnx.ModelProto]) -> str:
    """Whether every INT8 file has the ranges of `calibration.json`, which was made of this graph, frames and preprocessing.

    What the file must say is computed from the graphs, so its content is compared and never parsed. The files that it
    names are compared so; those for larger batches and with FP16 baked in have the same ranges by construction, so they
    are compared with the file that they were made from.

    Args:
        bundle: to check.
        graphs: of its files, by name.

    Returns:
        What was checked, in words.

    Raises:
        ConversionError: a file has other ranges, or there is no calibration.
    """
    calibration, variants = bundle.manifest.calibration, [row for row in bundle.manifest.variants if row.precision == "int8"]
    if calibration is None or CALIBRATION_FILE not in bundle.manifest.files:
        raise ConversionError(
            f"{bundle.path} has INT8 files but no calibration in its manifest and {CALIBRATION_FILE}; convert the model again"
        )
    first = calibrated_variants(variants)
    _check_file(bundle, calibration, {row.file: graphs[row.file] for row in first})
    ranges = {row.file: _ranges(bundle, row, graphs[row.file]) for row in variants}
    for row in variants:
        base = next((other for other in first if _family(other) == _family(row)), None)
        if base is None or not _same_ranges(ranges[row.file], ranges[base.file], rounded=base.form != row.form):
            raise ConversionError(
                f"the INT8 ranges of {bundle.path / row.file} are not those of {CALIBRATION_FILE}; convert the model again"
            )
    return _what_was_checked(variants)


def calibrated_variants(variants: Sequence[Variant]) -> list[Variant]:
    """The files whose ranges `calibration.json` holds: of each family of engines the one for one frame, in float32 if there is one."""
    found: dict[str, Variant] = {}
    for row in sorted(variants, key=lambda row: row.form == "tensorrt-strong"):
        if (row.precision, row.batch) == ("int8", 1):
            found.setdefault(_family(row), row)
    return [row for row in variants if row in found.values()]


def _family(variant: Variant) -> str:
    return variant.form.removesuffix("-strong")


def _check_file(bundle: Bundle, calibration: Calibration, files: Mapping[str, onnx.ModelProto]) -> None:
    key = key_of(sha256_of_file(bundle.model_path("fp32")), calibration.frame_sha256, bundle.preprocess)
    told = (bundle.path / CALIBRATION_FILE).read_bytes()
    if key.digest != calibration.key or calibration_bytes(key, calibration.frame_sha256, files) != told:
        raise ConversionError(
            f"the calibration of {bundle.path} is stale: it does not belong to these graphs, frames or preprocessing; convert again"
        )


def _ranges(bundle: Bundle, variant: Variant, model: onnx.ModelProto) -> list[Range]:
    try:
        return ranges_of(model)
    except (KeyError, IndexError, ValueError) as error:
        raise ConversionError(
            f"{bundle.path / variant.file} has quantizers whose scales are no constants; convert the model again"
        ) from error


def _same_ranges(found: Sequence[Range], expected: Sequence[Range], *, rounded: bool) -> bool:
    """`rounded`: FP16 holds the scales of `found`, and a tensor that became FP16 has another name."""
    if not rounded:
        return list(found) == list(expected)
    if [row.tensor.removesuffix("/half") for row in found] != [row.tensor for row in expected]:
        return False
    pairs = [
        pair for one, other in zip(found, expected, strict=True) for pair in ((one.low, other.low), (one.high, other.high))
    ]
    return all(len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=_HALF, atol=_HALF_LEAST) for ours, theirs in pairs)


def _what_was_checked(variants: Sequence[Variant]) -> str:
    names = ", ".join(row.file for row in variants)
    rounded = ", as far as FP16 holds them" if any(row.form == "tensorrt-strong" for row in variants) else ""
    return f"the INT8 ranges belong to these graphs, frames and preprocessing: {names}{rounded}"
