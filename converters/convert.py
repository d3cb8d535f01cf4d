"""One model's way from weights to a bundle, on one screen: import, check, draw frames, quantise, gate, report, write."""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.batches import PoolBatches
from calibration.gate_frames import PoolGateFrames
from converters.bundle_writer import finish_bundle, manifest_digest, staging_folder
from converters.calibration_file import CALIBRATION_FILE, CalibrationKey, calibration_bytes, earlier_calibration, key_of
from converters.checkpoint import HELD_OUT
from converters.errors import ConversionError
from converters.export_check import check_export
from converters.frames import Frames, choose_frames
from converters.gate import Candidate, Gate, Run, is_sound, judge, prefer, run_candidates
from converters.graph_check import calibrated_variants
from converters.half_floats import with_half_floats
from converters.imported import ImportedModel, load_model
from converters.int8_search import Calibrated, search_int8
from converters.model_files import ModelFile, rebatched, shipped_files
from converters.report import write_report
from converters.report_data import Findings
from converters.request import ConvertRequest, Plan, plan_of
from runtime.bundle import Bundle, publish
from runtime.device import Device
from runtime.files import sha256_of_file
from runtime.manifest import SCHEMA_VERSION, Calibration, Form, Manifest, OutputSpec, Parity, PreprocessSpec, ThresholdSpec
from runtime.pool import Pool
from runtime.postprocess import Thresholds
from runtime.progress import Report

_CHECKED_CANVASES = 2  # the export is compared with the original on that many frames


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
    plan = plan_of(request)
    start = time.monotonic()
    with (
        _opened(request.pool) as pool,
        staging_folder(beside) as staging,
        tempfile.TemporaryDirectory(prefix="edgeloop-") as pinned,
    ):
        report(f"reading {request.checkpoint} and exporting it")
        source_sha256 = _digest(request.checkpoint)
        model = load_model(request.checkpoint, request.import_options)
        if "head" in model.lineage and "input" in model.lineage:  # made elsewhere
            report(f"taken for {model.lineage['head']}; input {model.lineage['input']}: look at a detection")
        fp32 = ModelFile.write(staging, "fp32", "any", model.graph)
        again = (
            earlier_calibration(request.calibration, sha256_of_file(fp32.path), model.preprocess)
            if request.calibration
            else None
        )
        frames = choose_frames(request, pool, model, fp32.path, again, Path(pinned))
        if frames.drawn and frames.drawn.like_checked:
            report(
                f"note: {frames.drawn.like_checked} calibration frames look like frames of the gate; collect more that differ"
            )
        parity = check_export(model, _canvases(model, frames))
        report(
            f"exported {model.name}, {len(model.names)} classes, {time.monotonic() - start:.1f} s: boxes within {parity.max_box_px:.2g} px "
            f"and scores within {parity.max_score:.1g} of the original"
        )
        job = _Job(request, plan, model, fp32, frames, source_sha256, report)
        made = _make_files(job)
        _write_calibration(staging, job, made)
        write_report(staging, made.findings, with_pictures=request.pictures)
        manifest = _manifest(job, made)
        for line in parity_table(manifest):
            report(line)
        return finish_bundle(staging, manifest, place(manifest))


@dataclass(frozen=True)
class _Job:
    """A conversion under way."""

    request: ConvertRequest
    plan: Plan
    model: ImportedModel
    fp32: ModelFile
    frames: Frames
    source_sha256: str
    report: Report

    @property
    def gate(self) -> Gate | None:
        if self.frames.gate is None or not len(self.frames.gate):
            return None
        request = self.request
        return Gate(self.frames.gate, self.thresholds, self.model.names, request.bars, request.seed)

    @property
    def unread(self) -> frozenset[Form]:
        """TensorRT-RTX takes strong typing only; which of both a Jetson's or server's TensorRT takes depends on its version."""
        return frozenset(["tensorrt"]) if self.request.target == "rtx" else frozenset()

    @property
    def thresholds(self) -> Thresholds:
        return Thresholds(self.request.confidence, self.request.iou if self.model.nms else None)

    @property
    def calibrated(self) -> Calibrated:
        if self.frames.pinned is None or self.frames.drawn is None:
            raise ConversionError("INT8 needs frames to calibrate with; name a pool with --pool POOL")
        entries, preprocess = self.frames.drawn.calibration, self.model.preprocess
        return Calibrated(
            self.model.graph, PoolBatches(self.frames.pinned, entries, preprocess), len(entries),
            PoolGateFrames(self.frames.pinned, entries, preprocess), self.fp32.path.parent, self.report, self.unread,
        )  # fmt: skip


@dataclass(frozen=True)
class _Made:
    """The files that go into the bundle, and everything that was measured."""

    files: tuple[ModelFile, ...]
    findings: Findings

    @property
    def int8(self) -> tuple[ModelFile, ...]:
        """Those whose ranges were calibrated."""
        return tuple(file for file in self.files if file.precision == "int8")


def _make_files(job: _Job) -> _Made:
    """FP32, then FP16 and INT8 as planned, then all of them measured in one run; what does not hold is left out."""
    gate = job.gate
    if gate is None and (job.plan.int8 or job.plan.fp16):
        job.report("FP32 only: there are too few frames to measure more on; collect more, or name labelled images with --data")
    made, searches, skipped = [job.fp32], {}, list[str]()
    if gate and job.plan.fp16:
        folder = job.fp32.path.parent
        made.append(ModelFile.write(folder, "fp16", "tensorrt-strong", with_half_floats(job.model.graph)))
    if gate and job.plan.int8:
        floats = run_candidates(job.fp32.candidates(), gate, skipped)
        searches = {family: search_int8(family, job.calibrated, gate, floats) for family in job.plan.int8}
    for search in searches.values():
        made += [file for file in shipped_files(search.file) if search.holds and file.form not in job.unread]
        skipped += search.skipped
    if job.request.batch > 1:
        made += [rebatched(file, job.request.batch) for file in made]
    for family, search in searches.items():
        if not search.holds:
            reason = next((row.refused for row in reversed(search.attempts) if row.refused), "no engine runs it")
            job.report(f"no INT8 for {family}: {reason}")
    runs, rows = _measure_all(made, gate, skipped, job.report)
    files = tuple(file for file in made if not rows or _may_be_shipped(file, rows))
    kept = {file.path.name for file in files}
    for path in job.fp32.path.parent.glob("*.onnx"):
        if path.name not in kept:
            path.unlink()
    stays = [
        row
        for row in rows
        if any((row.precision, row.form, row.batch) == (file.precision, file.form, file.batch) for file in files)
    ]
    left_out = [row for row in rows if row not in stays]
    left_out += [row for search in searches.values() if not search.holds for row in search.attempts]
    findings = Findings(
        job.model.name, job.model.graph, gate, runs, (*stays, *left_out), prefer(stays, job.request.bars, left_out, skipped),
        job.frames.drawn, searches, tuple(file.variant for file in files), Device.current(),
    )  # fmt: skip
    return _Made(files, findings)


def _may_be_shipped(file: ModelFile, rows: Sequence[Parity]) -> bool:
    """Whether some engine runs it right, at every batch that was measured; FP32 at batch 1 is the measure itself."""
    if (file.precision, file.batch) == ("fp32", 1):
        return True
    same = [row for row in rows if (row.precision, row.form, row.batch) == (file.precision, file.form, file.batch)]
    return any(not row.refused and (file.precision == "fp32" or is_sound(row, rows)) for row in same)


def _measure_all(
    files: Sequence[ModelFile], gate: Gate | None, skipped: list[str], report: Report
) -> tuple[dict[Candidate, Run], list[Parity]]:
    """Every file under every engine, interleaved; what could not be run is told."""
    if gate is None:
        return {}, []
    runs = run_candidates([candidate for file in files for candidate in file.candidates()], gate, skipped)
    for reason in dict.fromkeys(skipped):
        report(f"not measured: {reason}")
    return runs, judge(runs, gate)


def parity_table(manifest: Manifest) -> list[str]:
    """The measurements as lines of text."""
    labeled = any(row.labeled for row in manifest.parity)
    head = (
        f"{'precision':10}{'form':16}{'engine':13}{'batch':>5}{'F1 vs FP32':>11}{'mean IoU':>10}{'score shift':>13}{'flips':>7}"
        f"{'p50 ms':>9}{'p99 ms':>9}{'F1':>8}{'mAP50-95':>10}"[: None if labeled else -18]
    )
    rows = [
        f"{row.precision:10}{row.form:16}{row.engine:13}{row.batch:5d}{row.f1_against_fp32:11.3f}{row.mean_iou:10.3f}"
        f"{row.mean_score_shift:+13.4f}{row.class_flips:7d}{_ms(row, row.latency_p50_ms)}{_ms(row, row.latency_p99_ms)}"
        + (f"{row.labeled.f1:8.4f}{row.labeled.map50_95:10.4f}" if row.labeled else "")
        + (f"  refused: {row.refused}" if row.refused else "")
        for row in manifest.parity
    ]
    preferred = manifest.preferred
    verdict = f"preferred: {preferred.precision} on {preferred.engine} ({preferred.reason})"
    return [*([head, *rows] if rows else []), verdict]


def _ms(row: Parity, value: float) -> str:
    """A proxy's time says nothing of the engine that will run the file."""
    return f"{'proxy':>9}" if row.is_proxy else f"{value:9.1f}"


def to_stderr(line: str) -> None:
    """The default report."""
    sys.stderr.write(line + "\n")


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[Pool | None]:
    if path is None:
        yield None
        return
    with Pool.open(path) as pool:
        yield pool


def _canvases(model: ImportedModel, frames: Frames) -> list[NDArray[np.uint8]]:
    """Real frames where there are any; else noise, on which every anchor says something."""
    if frames.gate is not None and len(frames.gate):
        return [frame.canvas[None] for frame in itertools.islice(frames.gate, _CHECKED_CANVASES)]
    canvas = model.preprocess.buffer()
    return [np.random.default_rng(0).integers(0, 256, canvas.shape, dtype=np.uint8)]


def _write_calibration(folder: Path, job: _Job, made: _Made) -> None:
    if job.frames.drawn is not None and made.int8:
        key, digests = _calibration_key(job)
        names = {row.file for row in calibrated_variants([file.variant for file in made.int8])}
        files = {file.path.name: file.model for file in made.int8 if file.path.name in names}
        (folder / CALIBRATION_FILE).write_bytes(calibration_bytes(key, digests, files))


def _calibration_key(job: _Job) -> tuple[CalibrationKey, list[str]]:
    digests = [entry.sha256 for entry in job.frames.drawn.calibration] if job.frames.drawn else []
    return key_of(sha256_of_file(job.fp32.path), digests, job.model.preprocess), digests


def _calibration(job: _Job, made: _Made) -> Calibration | None:
    drawn = job.frames.drawn
    if drawn is None or not made.int8:
        return None
    key, digests = _calibration_key(job)
    return Calibration(
        key=key.digest, sampler=drawn.sampler, seed=drawn.seed, frame_sha256=digests,
        radius=drawn.radius, mean_distance=drawn.mean_distance,
    )  # fmt: skip


def _manifest(job: _Job, made: _Made) -> Manifest:
    request, model, preprocess = job.request, job.model, job.model.preprocess
    shapes = {item.name: [dim.dim_value for dim in item.type.tensor_type.shape.dim] for item in model.graph.graph.output}
    lineage = {"checkpoint_sha256": job.source_sha256, **model.lineage, **request.lineage}
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=model.name,
        classes=list(model.names),
        preprocess=PreprocessSpec(
            size_wh=preprocess.size_wh, pad_value=preprocess.pad_value, stride=preprocess.stride,
            color="bgr" if preprocess.color == "bgr" else "rgb", scale=preprocess.scale,
        ),
        outputs=OutputSpec(
            batch=shapes["boxes"][0], top_k=shapes["boxes"][1], embedding_dim=shapes["embedding"][1], nms=model.nms
        ),
        thresholds=ThresholdSpec(confidence=request.confidence, iou=request.iou),
        variants=[file.variant for file in made.files],
        preferred=made.findings.preferred,
        measured_on=made.findings.device,
        parity=list(made.findings.rows),
        calibration=_calibration(job, made),
        lineage={key: value for key, value in lineage.items() if not key.startswith(HELD_OUT)},
        accuracy=_accuracy(lineage),
        files={path.name: sha256_of_file(path) for path in sorted(job.fp32.path.parent.iterdir())},
    )  # fmt: skip


def _digest(checkpoint: Path) -> str:
    """Of the file; a bundled architecture like yolo11n.yaml is none of ours."""
    return sha256_of_file(checkpoint) if checkpoint.is_file() else "bundled with ultralytics"


def _accuracy(lineage: Mapping[str, str]) -> dict[str, float]:
    """The figures that fine-tuning wrote into the checkpoint."""
    found = {}
    for key, value in lineage.items():
        with contextlib.suppress(ValueError):
            if key.startswith(HELD_OUT):
                found[key.removeprefix(HELD_OUT)] = float(value)
    return found
