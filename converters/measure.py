"""A device's own verdict on a bundle: the gate, on frames that the bundle was not calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.gate_frames import GateFrames, LabeledGateFrames, PoolGateFrames
from calibration.labels import load_held_out
from calibration.sampler import time_spread
from converters.errors import ConversionError
from converters.gate import Bars, Candidate, Gate, candidates_of, judge, prefer, run_candidates
from runtime.bundle import Bundle
from runtime.device import Device, engines_here
from runtime.extras import require
from runtime.files import sha256_of_file
from runtime.manifest import FORM_OF_ENGINE
from runtime.pool import Pool
from runtime.progress import Report
from runtime.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Measurement:
    """What to measure on and how.

    Attributes:
        pool, data: frames, held-out pool frames or labelled images; labels go first where both are named.
        gate_frames: how many, at most.
        seed: of their choice and the bootstrap.
        bars: of the gate.
    """

    pool: Path | None
    data: Path | None
    gate_frames: int
    seed: int
    bars: Bars


def measured_verdict(bundle: Bundle, wanted: Measurement, report: Report) -> Verdict:
    """Runs every file that this device's CPU engines take; one that an engine refuses is told and left out.

    Raises:
        ConversionError: there is no frame to measure on, or labels of other classes.
        BackendError, MissingPackageError: ONNX Runtime, which FP32 is measured with, is not there or refuses the file.
        PoolError, DataError: frames that cannot be read.
    """
    require(["onnxruntime"], "cpu")
    engines = list(engines_here())
    variants = [row for row in bundle.manifest.variants if row.form in ("any", *(FORM_OF_ENGINE[name] for name in engines))]
    candidates = candidates_of([(row.precision, row.form, row.batch, bundle.path / row.file) for row in variants], engines)
    if wanted.data is not None:
        require(["faster_coco_eval"], "convert")
        return _judged(bundle, candidates, _labeled(bundle, wanted.data, wanted), wanted, report)
    pool_path = wanted.pool or Path()
    with Pool.open(pool_path) as pool:
        calibrated = _calibrated(bundle)
        entries = [entry for entry in pool.entries(with_embeddings=False) if entry.sha256 not in calibrated]
        if not entries:
            raise ConversionError(
                f"pool {pool_path} has no frame that the bundle was not calibrated on; collect more, or name --data"
            )
        chosen = time_spread(entries, wanted.gate_frames, wanted.seed)
        return _judged(bundle, candidates, PoolGateFrames(pool, chosen, bundle.preprocess), wanted, report)


def _judged(
    bundle: Bundle, candidates: Sequence[Candidate], frames: GateFrames, wanted: Measurement, report: Report
) -> Verdict:
    gate = Gate(frames, bundle.thresholds, tuple(bundle.manifest.classes), wanted.bars, wanted.seed)
    skipped: list[str] = []
    rows = judge(run_candidates(candidates, gate, skipped), gate)
    for reason in dict.fromkeys(skipped):
        report(f"not measured: {reason}")
    if not rows:
        raise ConversionError(f"{bundle.path} has no FP32 file for one frame to measure against; convert the model again")
    return Verdict(bundle=bundle.digest, device=Device.current(), preferred=prefer(rows, wanted.bars), parity=rows)


def _labeled(bundle: Bundle, data: Path, wanted: Measurement) -> GateFrames:
    dataset = load_held_out(data)
    if dataset.names != tuple(bundle.manifest.classes):
        raise ConversionError(
            f"{data} has classes {list(dataset.names[:6])}, the bundle {bundle.manifest.classes[:6]}; they must be the same"
        )
    calibrated = _calibrated(bundle)
    fresh = [item for item in dataset.val if sha256_of_file(item.path) not in calibrated]
    if not fresh:
        raise ConversionError(f"{data} names no image under `val` that the bundle was not calibrated on; name others")
    return LabeledGateFrames(time_spread(fresh, wanted.gate_frames, wanted.seed), bundle.preprocess)


def _calibrated(bundle: Bundle) -> set[str]:
    return set(bundle.manifest.calibration.frame_sha256) if bundle.manifest.calibration else set()
