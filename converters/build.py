"""What a device does with a bundle before it runs it: build its engines, and measure again what was measured elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calibration.gate_frames import GateFrames, LabeledGateFrames, PoolGateFrames
from calibration.labels import load_held_out
from calibration.sampler import time_spread
from converters.errors import ConversionError
from converters.gate import Bars, Candidate, Gate, candidates_of, judge, prefer, run_candidates
from converters.request import DEFAULT_GATE_FRAMES
from runtime.backends import ENGINES
from runtime.bundle import Bundle
from runtime.device import Device, engine_version
from runtime.files import sha256_of_file
from runtime.manifest import FORM_OF_ENGINE, Form, Precision
from runtime.pool import Pool
from runtime.progress import Progress
from runtime.tensorrt.device import find_device
from runtime.tensorrt.engine_cache import EngineRequest, engine_for
from runtime.tensorrt.engine_from_onnx import BuildOptions
from runtime.tensorrt.flavour import Flavour, installed_flavours
from runtime.verdict import Verdict, save_verdict

Report = Callable[[str], None]


@dataclass(frozen=True)
class BuildRequest:
    """What to do with a bundle on this device.

    Attributes:
        bundle: its folder.
        pool, data: frames to measure on, held-out pool frames or labelled images; None for neither.
        compute_capabilities: of other devices, like `SM86`, that TensorRT-RTX shall build for; empty means this one.
        gate_frames: how many frames are measured on.
        seed: of the choice of frames.
        bars: of the gate.
    """

    bundle: Path
    pool: Path | None = None
    data: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    gate_frames: int = DEFAULT_GATE_FRAMES
    seed: int = 0
    bars: Bars = field(default_factory=Bars)


def build(request: BuildRequest, report: Report) -> dict[str, Any]:
    """Builds the engines of this device, or of other ones, into the cache, and keeps this device's verdict.

    Raises:
        ConversionError: there is nothing that could be done here.
        BackendError, BundleError, CacheError, PoolError, DataError: an engine, bundle, cache or frames that fail.
    """
    bundle = Bundle.open(request.bundle)
    engines = _build_engines(bundle, request, report)
    if request.pool is None and request.data is None:
        if not engines:
            raise ConversionError(
                "there is no NVIDIA GPU here to build engines for, and no frames to measure the CPU engines on; "
                "name --pool or --data, or with tensorrt-rtx other devices by --compute-capability SM86"
            )
        return {"bundle": str(bundle.path), "engines": engines, "verdict": None}
    verdict = _measure(bundle, request, report)
    save_verdict(bundle, verdict)
    preferred = verdict.preferred
    return {
        "bundle": str(bundle.path), "engines": engines,
        "verdict": f"{preferred.precision} on {preferred.engine}: {preferred.reason}",
        "measurements": [row.model_dump() for row in verdict.parity],
    }  # fmt: skip


def _build_engines(bundle: Bundle, request: BuildRequest, report: Report) -> list[str]:
    """One engine for each precision of the bundle and each TensorRT of this device."""
    flavours = [flavour for flavour in installed_flavours() if flavour.rtx or not request.compute_capabilities]
    if request.compute_capabilities and not any(flavour.rtx for flavour in flavours):
        raise ConversionError(
            "--compute-capability needs TensorRT-RTX, which is not installed; get it with: pip install 'edgeloop[tensorrt-rtx]'"
        )
    if not request.compute_capabilities and find_device() is None:
        return []
    built = []
    for flavour in flavours:
        for precision, path in _files_for(bundle, flavour):
            with Progress(f"{flavour.name} {precision}", 100) as progress:
                plan = engine_for(
                    EngineRequest(
                        path, precision, _ranges_of(bundle), BuildOptions(compute_capabilities=request.compute_capabilities)
                    ),
                    flavour=flavour,
                    progress=lambda phase, share, bar=progress: bar.reach(round(share * 100), phase),  # type: ignore[misc]
                )
            built.append(f"{precision} by {flavour.name} {flavour.version} of {path.name}, {len(plan) / 1e6:.1f} MB")
            report(built[-1])
    return built


def _files_for(bundle: Bundle, flavour: Flavour) -> list[tuple[Precision, Path]]:
    """The files that a TensorRT takes, of every batch: weak typing makes FP16 of the FP32 file by itself."""
    form: Form = "tensorrt-strong" if flavour.baked_precision else "tensorrt"
    found: list[tuple[Precision, Path]] = []
    for row in bundle.manifest.variants:
        if row.form not in ("any", form):
            continue
        found.append((row.precision, bundle.path / row.file))
        if row.precision == "fp32" and not flavour.baked_precision:
            found.append(("fp16", bundle.path / row.file))
    return found


def _ranges_of(bundle: Bundle) -> str | None:
    return bundle.manifest.calibration.key if bundle.manifest.calibration else None


def _measure(bundle: Bundle, request: BuildRequest, report: Report) -> Verdict:
    manifest = bundle.manifest
    engines = [name for name in ENGINES if engine_version(name)]
    variants = [row for row in manifest.variants if row.form in ("any", *(FORM_OF_ENGINE[name] for name in engines))]
    candidates = candidates_of([(row.precision, row.form, row.batch, bundle.path / row.file) for row in variants], engines)
    if request.data is not None:
        return _judged(bundle, candidates, _labeled(bundle, request), request, report)
    with Pool.open(request.pool or Path()) as pool:
        calibrated = set(manifest.calibration.frame_sha256) if manifest.calibration else set()
        entries = [entry for entry in pool.entries(with_embeddings=False) if entry.sha256 not in calibrated]
        if not entries:
            raise ConversionError(
                f"pool {request.pool} has no frame that the bundle was not calibrated on; collect more, or name --data"
            )
        chosen = time_spread(entries, request.gate_frames, request.seed)
        return _judged(bundle, candidates, PoolGateFrames(pool, chosen, bundle.preprocess), request, report)


def _judged(
    bundle: Bundle, candidates: Sequence[Candidate], frames: GateFrames, request: BuildRequest, report: Report
) -> Verdict:
    gate = Gate(frames, bundle.thresholds, tuple(bundle.manifest.classes), request.bars, request.seed)
    skipped: list[str] = []
    rows = judge(run_candidates(candidates, gate, skipped), gate)
    for reason in dict.fromkeys(skipped):
        report(f"not measured: {reason}")
    if not rows:
        raise ConversionError(
            "ONNX Runtime, which FP32 is measured with, is not here; get it with: pip install 'edgeloop[cpu]'"
        )
    return Verdict(bundle=bundle.digest, device=Device.current(), preferred=prefer(rows, request.bars), parity=rows)


def _labeled(bundle: Bundle, request: BuildRequest) -> GateFrames:
    dataset = load_held_out(request.data or Path())
    if dataset.names != tuple(bundle.manifest.classes):
        raise ConversionError(
            f"{request.data} has classes {list(dataset.names[:6])}, the bundle {bundle.manifest.classes[:6]}; they must be the same"
        )
    calibrated = set(bundle.manifest.calibration.frame_sha256) if bundle.manifest.calibration else set()
    fresh = [item for item in dataset.val if sha256_of_file(item.path) not in calibrated]
    if not fresh:
        raise ConversionError(f"{request.data} names no image under `val` that the bundle was not calibrated on; name others")
    return LabeledGateFrames(time_spread(fresh, request.gate_frames, request.seed), bundle.preprocess)
