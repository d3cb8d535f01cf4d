"""Looking at finished bundles: what is in one, whether it is sound, and in what two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # what onnx.load raises
from onnx import TensorProto, numpy_helper

from converters.calibration_file import CALIBRATION_FILE, calibration_bytes, key_of
from converters.errors import ConversionError
from runtime.bundle import MANIFEST, Bundle
from runtime.files import sha256_of_file
from runtime.manifest import Parity, Variant
from runtime.onnx_file import refuse_external_data
from runtime.signature import SIGNATURE
from runtime.signature import verify_bundle as verify_signature

_OUTPUTS = ("boxes", "scores", "classes", "embedding")


def describe(bundle: Bundle) -> dict[str, Any]:
    """What a bundle holds, in words and numbers."""
    manifest = bundle.manifest
    spec, outputs = manifest.preprocess, manifest.outputs
    calibration = manifest.calibration
    return {
        "bundle": str(bundle.path),
        "digest": bundle.digest,
        "model": f"{manifest.name}, {len(manifest.classes)} classes: {', '.join(manifest.classes[:8])}{' …' if len(manifest.classes) > 8 else ''}",
        "input": f"uint8 BGR {spec.size_wh[0]}×{spec.size_wh[1]}, padded with {spec.pad_value}",
        "output": f"{outputs.top_k} boxes, embedding of {outputs.embedding_dim}, {'NMS on the host' if outputs.nms else 'no NMS needed'}",
        "thresholds": f"confidence {manifest.thresholds.confidence:g}, IoU {manifest.thresholds.iou:g}",
        "preferred": f"{manifest.preferred.precision} on {manifest.preferred.engine}: {manifest.preferred.reason}",
        "measured on": f"{manifest.measured_on.cpu} ({', '.join(manifest.measured_on.isa)}), {_versions(manifest.measured_on.engines)}",
        "signed": "yes" if (bundle.path / SIGNATURE).is_file() else "no",
        "calibration": f"{len(calibration.frame_sha256)} frames by {calibration.sampler}, seed {calibration.seed}"
        if calibration
        else "none",
        "files": [_file_line(bundle, variant) for variant in manifest.variants],
        "measurements": [_row_line(row) for row in manifest.parity],
        "lineage": [f"{key}: {value}" for key, value in manifest.lineage.items()],
    }


def verify_bundle(path: Path, trust_key: Path | None) -> dict[str, Any]:
    """Checks everything that can be checked without frames.

    Raises:
        BundleError: files missing or altered; no signature of that key.
        BackendError: an ONNX that keeps weights elsewhere.
        ConversionError: a graph that is not what the manifest says, or a calibration that does not belong to its files.
    """
    bundle = Bundle.open(path)
    known = {*bundle.manifest.files, MANIFEST, SIGNATURE}
    foreign = sorted(item.name for item in bundle.path.iterdir() if item.name not in known)
    if foreign:
        raise ConversionError(
            f"{bundle.path} holds {len(foreign)} things that its manifest does not name ({', '.join(foreign[:3])}); remove them"
        )
    checks = [f"{len(bundle.manifest.files)} files match their SHA-256, and nothing else is there"]
    if trust_key is not None:
        verify_signature(bundle.path, trust_key)
        checks.append(f"signed by the owner of {trust_key}")
    graphs = {variant.file: _checked_graph(bundle, variant) for variant in bundle.manifest.variants}
    checks.append(f"{len(graphs)} graphs are valid ONNX with the inputs and outputs of the manifest")
    if bundle.manifest.calibration is not None:
        _check_calibration(bundle, graphs)
        checks.append("the INT8 ranges belong to these graphs, frames and preprocessing")
    unsigned = [] if trust_key or not (bundle.path / SIGNATURE).is_file() else ["signature not checked: no --trust-key"]
    return {"bundle": str(bundle.path), "digest": bundle.digest, "verified": [*checks, *unsigned]}


def differences(one: Bundle, other: Bundle) -> dict[str, Any]:
    """In what two bundles differ: contract, files, measurements."""
    a, b = one.manifest, other.manifest
    fields = (
        "name",
        "classes",
        "preprocess",
        "outputs",
        "thresholds",
        "preferred",
        "measured_on",
        "calibration",
        "lineage",
        "accuracy",
    )
    changed = [
        f"{name}: {_short(getattr(a, name))} → {_short(getattr(b, name))}"
        for name in fields
        if getattr(a, name) != getattr(b, name)
    ]
    compatible = (a.classes, a.preprocess, a.outputs.embedding_dim) == (b.classes, b.preprocess, b.outputs.embedding_dim)
    signed = ["there" if (bundle.path / SIGNATURE).is_file() else "none" for bundle in (one, other)]
    if signed[0] != signed[1]:
        changed.append(f"signature: {signed[0]} → {signed[1]}")
    names = sorted(set(a.files) | set(b.files))
    files = [
        f"{name}: {_change(a.files.get(name), b.files.get(name))}" for name in names if a.files.get(name) != b.files.get(name)
    ]
    return {
        "same": one.digest == other.digest,
        "a daemon can swap them": compatible,
        "changed": changed,
        "files": files,
        "measurements": _compared(a.parity, b.parity),
    }


def _compared(ours: list[Parity], theirs: list[Parity]) -> list[str]:
    found = []
    for row in ours:
        key = (row.precision, row.form, row.engine, row.batch)
        for other in theirs:
            if (other.precision, other.form, other.engine, other.batch) == key:
                labeled = (
                    f", mAP50-95 {row.labeled.map50_95:.4f} → {other.labeled.map50_95:.4f}"
                    if row.labeled and other.labeled
                    else ""
                )
                found.append(
                    f"{row.precision} {row.form} on {row.engine}, batch {row.batch}: p50 {row.latency_p50_ms:.1f} → {other.latency_p50_ms:.1f} ms, "
                    f"F1 against FP32 {row.f1_against_fp32:.3f} → {other.f1_against_fp32:.3f}{labeled}"
                )
                break
    return found


def _checked_graph(bundle: Bundle, variant: Variant) -> onnx.ModelProto:
    path = bundle.path / variant.file
    refuse_external_data(path)
    try:
        model = onnx.load(path, load_external_data=False)
        onnx.checker.check_model(model)
        floats = (item for item in model.graph.initializer if item.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16))
        finite = all(np.isfinite(numpy_helper.to_array(item)).all() for item in floats)
    except (onnx.checker.ValidationError, DecodeError, ValueError, RuntimeError, TypeError) as error:
        raise ConversionError(
            f"{path} is not valid ONNX: {(str(error).splitlines() or ['damaged'])[0]}; convert the model again"
        ) from error
    width, height = bundle.manifest.preprocess.size_wh
    wanted = [variant.batch, height, width, 3]
    inputs = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in model.graph.input}
    if inputs != {"images": wanted} or [item.name for item in model.graph.output] != list(_OUTPUTS):
        raise ConversionError(f"{path} takes {inputs}, but the manifest says images {wanted}; convert the model again")
    if not finite:
        raise ConversionError(f"{path} holds NaN or infinity; train or convert the model again")
    return model


def _check_calibration(bundle: Bundle, graphs: dict[str, onnx.ModelProto]) -> None:
    """What calibration.json must say is computed from the graphs, so its content is compared and never parsed."""
    calibration = bundle.manifest.calibration
    if calibration is None or CALIBRATION_FILE not in bundle.manifest.files:
        raise ConversionError(f"{bundle.path} has INT8 files but no {CALIBRATION_FILE}; convert the model again")
    key = key_of(sha256_of_file(bundle.model_path("fp32")), calibration.frame_sha256, bundle.preprocess)
    files = {
        row.file: graphs[row.file]
        for row in bundle.manifest.variants
        if (row.precision, row.batch) == ("int8", 1) and row.form != "tensorrt-strong"
    }
    told = (bundle.path / CALIBRATION_FILE).read_bytes()
    if key.digest != calibration.key or calibration_bytes(key, calibration.frame_sha256, files) != told:
        raise ConversionError(
            f"the calibration of {bundle.path} is stale: it does not belong to these graphs, frames or preprocessing; convert again"
        )


def _file_line(bundle: Bundle, variant: Variant) -> str:
    size = (bundle.path / variant.file).stat().st_size / 1e6
    floats = f", {len(variant.float_layers)} layers in float" if variant.float_layers else ""
    return f"{variant.file}: {variant.precision} for {variant.form}, batch {variant.batch}, {size:.1f} MB{floats}"


def _row_line(row: Parity) -> str:
    labeled = f", F1 {row.labeled.f1:.4f}, mAP50-95 {row.labeled.map50_95:.4f}" if row.labeled else ""
    refused = f", refused: {row.refused}" if row.refused else ""
    return (
        f"{row.precision} {row.form} on {row.engine}, batch {row.batch}: p50 {row.latency_p50_ms:.1f} ms, p99 {row.latency_p99_ms:.1f} ms, "
        f"F1 against FP32 {row.f1_against_fp32:.3f}{labeled}{refused}"
    )


def _versions(engines: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in engines.items()) or "no engine"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else text[:99] + "…"


def _change(before: str | None, after: str | None) -> str:
    if before is None or after is None:
        return "added" if before is None else "removed"
    return f"{before[:12]} → {after[:12]}"
