"""Looking at finished bundles: what is in one, whether it is sound, and in what two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from converters.errors import ConversionError
from runtime.bundle import MANIFEST, Bundle
from runtime.extras import require
from runtime.manifest import Parity, Variant
from runtime.signature import SIGNATURE
from runtime.signature import verify_bundle as verify_signature


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
        "measurements": [row_line(row) for row in manifest.parity],
        "lineage": [f"{key}: {value}" for key, value in manifest.lineage.items()],
    }


def verify_bundle(path: Path, trust_key: Path | None) -> dict[str, Any]:
    """Checks everything that can be checked without frames; with a key, the signature before anything else is read.

    Raises:
        BundleError: files missing or altered; no signature of that key.
        BackendError: an ONNX that keeps weights elsewhere.
        ConversionError: a graph that is not what the manifest says, or a calibration that does not belong to its files.
        MissingPackageError: onnx, which reads the graphs, is not installed.
    """
    require(["onnx"], "convert")
    from converters.graph_check import check_calibration, checked_graph  # onnx: devices look at bundles without it

    bundle = verify_signature(path, trust_key) if trust_key else Bundle.open(path)
    _refuse_foreign_files(bundle)
    checks = [f"{len(bundle.manifest.files)} files match their SHA-256, and nothing else is there"]
    if trust_key is not None:
        checks.append(f"signed by the owner of {trust_key}")
    elif not (bundle.path / SIGNATURE).is_file():
        checks.append("not signed")
    bundle.model_path("fp32", batch=bundle.manifest.outputs.batch)  # what the daemon's canvas is made for
    graphs = {variant.file: checked_graph(bundle, variant) for variant in bundle.manifest.variants}
    checks.append(f"{len(graphs)} graphs are valid ONNX with the inputs and outputs of the manifest: names, types and shapes")
    if any(variant.precision == "int8" for variant in bundle.manifest.variants):
        checks.append(check_calibration(bundle, graphs))
    unsigned = [] if trust_key or not (bundle.path / SIGNATURE).is_file() else ["signature not checked: no --trust-key"]
    return {"bundle": str(bundle.path), "digest": bundle.digest, "verified": [*checks, *unsigned]}


def _refuse_foreign_files(bundle: Bundle) -> None:
    known = {*bundle.manifest.files, MANIFEST, SIGNATURE}
    foreign = sorted(item.name for item in bundle.path.iterdir() if item.name not in known)
    if foreign:
        raise ConversionError(
            f"{bundle.path} holds {len(foreign)} things that its manifest does not name ({', '.join(foreign[:3])}); remove them"
        )


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


def _file_line(bundle: Bundle, variant: Variant) -> str:
    size = (bundle.path / variant.file).stat().st_size / 1e6
    floats = f", {len(variant.float_layers)} layers in float" if variant.float_layers else ""
    return f"{variant.file}: {variant.precision} for {variant.form}, batch {variant.batch}, {size:.1f} MB{floats}"


def row_line(row: Parity) -> str:
    """A measurement in words."""
    time = "no time: a proxy" if row.is_proxy else f"p50 {row.latency_p50_ms:.1f} ms, p99 {row.latency_p99_ms:.1f} ms"
    labeled = f", F1 {row.labeled.f1:.4f}, mAP50-95 {row.labeled.map50_95:.4f}" if row.labeled else ""
    refused = f", refused: {row.refused}" if row.refused else ""
    return (
        f"{row.precision} {row.form} on {row.engine}, batch {row.batch}: {time}, "
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
