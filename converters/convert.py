"""One model's way from weights to a bundle, on one screen."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from calibration.batches import PoolBatches
from calibration.sampler import CalibrationFrames, sample_frames
from converters.bundle_writer import finish_bundle, manifest_digest, staging_folder
from converters.errors import CheckpointError, ConversionError
from converters.onnx_from_torch import (
    HELD_OUT,
    Checkpoint,
    detector_from_checkpoint,
    load_checkpoint,
    onnx_from_torch,
    uses_nms,
)
from converters.parity import measure_parity, prefer
from converters.qdq_from_onnx import qdq_from_onnx
from runtime.bundle import (
    SCHEMA_VERSION,
    Bundle,
    Calibration,
    Manifest,
    OutputSpec,
    Parity,
    PreprocessSpec,
    ThresholdSpec,
    Variant,
    publish,
)
from runtime.files import sha256_of_file
from runtime.pool import Pool
from runtime.postprocess import Thresholds
from runtime.preprocess import STRIDE, Preprocess

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

DEFAULT_CALIBRATION_FRAMES = 64  # NNCF's accuracy on yolo11n is flat from here on (shared facts, baselines.md)
DEFAULT_PARITY_FRAMES = 32

Report = Callable[[str], None]


@dataclass(frozen=True)
class ConvertRequest:
    """What to convert and how.

    Attributes:
        checkpoint: file of weights.
        pool: where calibration frames come from; None makes an FP32-only bundle.
        imgsz: side of the square canvas in pixels; None takes the checkpoint's.
        model: architecture, where the checkpoint's shapes alone cannot tell.
        names: class names that replace the checkpoint's.
        confidence, iou: thresholds of the release, 0 to 1.
        frames: how many frames calibrate.
        seed: of the draw.
        until_s: use pool frames captured up to this Unix time; None for all.
        lineage: facts for the manifest that the caller knows.
    """

    checkpoint: Path
    pool: Path | None = None
    imgsz: int | None = None
    model: str | None = None
    names: tuple[str, ...] | None = None
    confidence: float = 0.25
    iou: float = 0.7
    frames: int = DEFAULT_CALIBRATION_FRAMES
    seed: int = 0
    until_s: float | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)


def convert(request: ConvertRequest, out: Path, report: Report) -> Bundle:
    """Exports, quantises, measures and writes the bundle folder `out`.

    Raises:
        EdgeloopError: anything that cannot be converted; nothing is left behind.
    """
    if out.exists():
        raise ConversionError(f"{out} exists already; remove it, or choose another --out")
    return _convert(request, lambda _: out, out, report)


def convert_into(request: ConvertRequest, bundles: Path, report: Report) -> Bundle:
    """Like `convert`, into `bundles/<digest>`."""
    return _convert(request, lambda manifest: bundles / manifest_digest(manifest)[:16], bundles / "new", report)


def release(request: ConvertRequest, bundles: Path, report: Report) -> Bundle:
    """Like `convert_into`, and moves `bundles/current` there."""
    bundle = convert_into(request, bundles, report)
    publish(bundles, bundle)
    return bundle


def _convert(request: ConvertRequest, place: Callable[[Manifest], Path], beside: Path, report: Report) -> Bundle:
    checkpoint = _read(request)
    side = request.imgsz or checkpoint.imgsz
    if side % STRIDE:
        raise ConversionError(
            f"the input side must be a multiple of {STRIDE}, but got {side}; try --imgsz {-(-side // STRIDE) * STRIDE}"
        )
    preprocess = Preprocess((side, side))
    with staging_folder(beside) as staging:
        start = time.monotonic()
        fp32 = onnx_from_torch(_detector(request.checkpoint, checkpoint), preprocess)
        models = {"fp32": _save(fp32, staging / "model.fp32.onnx")}
        report(
            f"exported {checkpoint.model} at {side}×{side}, {len(checkpoint.names)} classes, {time.monotonic() - start:.1f} s"
        )
        thresholds = Thresholds(request.confidence, request.iou if uses_nms(fp32) else None)
        parity, calibration = [], None
        if request.pool is not None:
            with Pool.open(request.pool) as pool:
                frames = sample_frames(pool, request.frames, DEFAULT_PARITY_FRAMES, request.seed, request.until_s)
                start = time.monotonic()
                int8 = qdq_from_onnx(fp32, PoolBatches(pool, frames.calibration, preprocess), len(frames.calibration))
                models["int8"] = _save(int8, staging / "model.int8.onnx")
                report(f"quantised with {len(frames.calibration)} frames of {request.pool}, {time.monotonic() - start:.1f} s")
                parity = measure_parity(models, PoolBatches(pool, frames.held_out, preprocess), thresholds)
            calibration = _calibration(frames)
        manifest = _manifest(request, checkpoint, preprocess, fp32, models, parity, calibration)
        for line in parity_table(manifest):
            report(line)
        return finish_bundle(staging, manifest, place(manifest))


def parity_table(manifest: Manifest) -> list[str]:
    """The parity measurements as lines of text."""
    head = f"{'precision':10}{'engine':13}{'F1 vs FP32':>11}{'mean IoU':>10}{'score shift':>13}{'flips':>7}{'p50 ms':>9}{'p99 ms':>9}"
    rows = [
        f"{row.precision:10}{row.engine:13}{row.f1_against_fp32:11.3f}{row.mean_iou:10.3f}{row.mean_score_shift:+13.4f}"
        f"{row.class_flips:7d}{row.latency_p50_ms:9.1f}{row.latency_p99_ms:9.1f}"
        for row in manifest.parity
    ]
    preferred = manifest.preferred
    verdict = f"preferred: {preferred.precision} on {preferred.engine} ({preferred.reason})"
    return [*([head, *rows] if rows else []), verdict]


def to_stderr(line: str) -> None:
    """The default report."""
    sys.stderr.write(line + "\n")


def _read(request: ConvertRequest) -> Checkpoint:
    found = load_checkpoint(request.checkpoint, request.model)
    names = request.names or found.names
    return Checkpoint(found.model, names, found.state, found.imgsz, found.kind, found.lineage)


def _detector(path: Path, checkpoint: Checkpoint) -> DetectionModel:
    try:
        return detector_from_checkpoint(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def _accuracy(lineage: Mapping[str, str]) -> dict[str, float]:
    """The figures that fine-tuning wrote into the checkpoint."""
    found = {}
    for key, value in lineage.items():
        with contextlib.suppress(ValueError):
            if key.startswith(HELD_OUT):
                found[key.removeprefix(HELD_OUT)] = float(value)
    return found


def _calibration(frames: CalibrationFrames) -> Calibration:
    digests = [entry.sha256 for entry in frames.calibration]
    return Calibration(sampler=frames.sampler, seed=frames.seed, frame_sha256=digests)


def _manifest(
    request: ConvertRequest, checkpoint: Checkpoint, preprocess: Preprocess, fp32: onnx.ModelProto,
    models: Mapping[str, Path], parity: list[Parity], calibration: Calibration | None,
) -> Manifest:  # fmt: skip
    shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in fp32.graph.output}
    lineage = {"checkpoint_sha256": sha256_of_file(request.checkpoint), **checkpoint.lineage, **request.lineage}
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=checkpoint.model,
        classes=list(checkpoint.names),
        preprocess=PreprocessSpec(
            size_wh=preprocess.size_wh, pad_value=preprocess.pad_value, stride=preprocess.stride,
            color="rgb", scale=preprocess.scale,
        ),
        outputs=OutputSpec(
            batch=shapes["boxes"][0], top_k=shapes["boxes"][1], embedding_dim=shapes["embedding"][1], nms=uses_nms(fp32)
        ),
        thresholds=ThresholdSpec(confidence=request.confidence, iou=request.iou),
        variants=[Variant(precision=precision, file=path.name) for precision, path in models.items()],
        preferred=prefer(parity),
        parity=parity,
        calibration=calibration,
        lineage={key: value for key, value in lineage.items() if not key.startswith(HELD_OUT)},
        accuracy=_accuracy(lineage),
        files={path.name: sha256_of_file(path) for path in models.values()},
    )  # fmt: skip
