"""What a device does with a bundle before it runs it: measure what was measured elsewhere, and build its engines.

Loads no onnx: a device with `edgeloop[cpu]` has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.errors import ConversionError
from converters.gate import Bars
from converters.measure import Measurement, measured_verdict
from converters.request import DEFAULT_GATE_FRAMES
from runtime.bundle import Bundle
from runtime.errors import BackendError, CacheError, MissingPackageError
from runtime.manifest import Precision
from runtime.progress import Progress, Report
from runtime.signature import verify_bundle
from runtime.tensorrt.device import Device, find_device
from runtime.tensorrt.engine_cache import EngineCache, EngineRequest, engine_for
from runtime.tensorrt.engine_from_onnx import BuildOptions, known_targets
from runtime.tensorrt.flavour import Flavour, installed_flavours, load_flavour
from runtime.verdict import Verdict, refuse_unwritable, save_verdict


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
        trust_key: public key of whoever must have signed the bundle; None takes it from anyone.
    """

    bundle: Path
    pool: Path | None = None
    data: Path | None = None
    compute_capabilities: tuple[str, ...] = ()
    gate_frames: int = DEFAULT_GATE_FRAMES
    seed: int = 0
    bars: Bars = field(default_factory=Bars)
    trust_key: Path | None = None

    @property
    def measurement(self) -> Measurement | None:
        """What the measuring needs of it; None where no frames are named."""
        if self.pool is None and self.data is None:
            return None
        return Measurement(self.pool, self.data, self.gate_frames, self.seed, self.bars)


@dataclass(frozen=True)
class Builders:
    """What engines are built with.

    Attributes:
        flavours: each TensorRT to build with.
        broken: why others that are installed do not load.
        gpu: the one at hand, if there is one.
    """

    flavours: Sequence[Flavour] = ()
    broken: Sequence[BackendError] = ()
    gpu: Device | None = None

    @classmethod
    def of_this_device(cls, compute_capabilities: Sequence[str]) -> Builders:
        """TensorRT-RTX where other devices are named; else whatever is installed, if there is a GPU.

        Raises:
            BackendError, MissingPackageError: other devices are named, and TensorRT-RTX does not load, is not there or does not know them.
        """
        gpu = find_device()
        if compute_capabilities:
            rtx = load_flavour("tensorrt-rtx")
            known_targets(rtx.trt, compute_capabilities)
            return cls([rtx], gpu=gpu)
        return cls(*installed_flavours(), gpu) if gpu else cls()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        engines: what is in the cache now, in words.
        failures: what did not work, in a sentence each.
        verdict: what was measured, if anything was.
        refusal: what was asked for by name and could not be done, or that nothing could; empty otherwise.
    """

    engines: list[str]
    failures: list[str]
    verdict: Verdict | None
    refusal: str

    @property
    def told(self) -> dict[str, Any]:
        """As the command prints it."""
        best = self.verdict.preferred if self.verdict else None
        return {
            "engines": self.engines, "failed": self.failures,
            "verdict": f"{best.precision} on {best.engine}: {best.reason}" if best else None,
            "measurements": [row.model_dump() for row in self.verdict.parity] if self.verdict else [],
        }  # fmt: skip


def build(request: BuildRequest, report: Report, builders: Builders | None = None) -> Outcome:
    """Measures and keeps this device's verdict, and builds its engines, or those of other devices, into the cache.

    What fails under one engine is told, and the others go on.

    Args:
        request: what to do.
        report: told each step and each failure.
        builders: replaces what this device has.

    Raises:
        ConversionError: nothing could be done here, or the frames are none to measure on.
        BackendError, MissingPackageError: other devices are named, and TensorRT-RTX does not load or is not there.
        BundleError, CacheError, PoolError, DataError: a bundle, cache or frames that cannot be used; nothing was done.
    """
    bundle = verify_bundle(request.bundle, request.trust_key) if request.trust_key else Bundle.open(request.bundle)
    builders = builders or Builders.of_this_device(request.compute_capabilities)
    files = [(flavour, *file) for flavour in builders.flavours for file in _files_for(bundle, flavour)]
    if not (files or builders.broken or request.measurement):
        raise ConversionError(
            "there is no NVIDIA GPU with TensorRT here to build engines for, and no frames to measure the CPU engines on; "
            "name --pool or --data, or with tensorrt-rtx other devices by --compute-capability SM86"
        )
    if request.measurement:
        refuse_unwritable()
    if files:
        EngineCache().sealed.refuse_unwritable()
    failures = _Failures(report)
    for error in builders.broken:
        failures.add(f"not built: {error}")
    verdict, kept = _kept_verdict(bundle, request.measurement, report, failures) if request.measurement else (None, False)
    engines = _engines(bundle, request, files, builders.gpu, failures)
    missing = ["this device's verdict"] if request.measurement and not kept else []
    unbuilt = len(files) - len(engines) + len(builders.broken)
    if unbuilt and not (engines or (verdict and not request.compute_capabilities)):
        missing.append(f"{unbuilt} of {unbuilt + len(engines)} engines")
    refusal = f"{' and '.join(missing)} could not be had, for the reasons above" if missing else ""
    return Outcome(engines, failures.sentences, verdict, refusal)


@dataclass
class _Failures:
    """Tells each as it comes, and remembers it."""

    report: Report
    sentences: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        self.report(sentence)
        self.sentences.append(sentence)


def _kept_verdict(bundle: Bundle, measurement: Measurement, report: Report, failures: _Failures) -> tuple[Verdict | None, bool]:
    """What was measured, and whether the device remembers it."""
    try:
        verdict = measured_verdict(bundle, measurement, report)
    except (BackendError, MissingPackageError) as error:
        failures.add(f"not measured: {error}")
        return None, False
    try:
        save_verdict(bundle, verdict)
    except CacheError as error:
        failures.add(f"the verdict is not kept: {error}")
        return verdict, False
    return verdict, True


def _engines(
    bundle: Bundle,
    request: BuildRequest,
    files: Sequence[tuple[Flavour, Precision, Path]],
    gpu: Device | None,
    failures: _Failures,
) -> list[str]:
    """Those that were built or are in the cache already."""
    ranges = bundle.manifest.calibration.key if bundle.manifest.calibration else None
    options = BuildOptions(compute_capabilities=request.compute_capabilities)
    built = []
    for flavour, precision, path in files:
        try:
            size = _size_of_engine(EngineRequest(path, precision, ranges, options), flavour, gpu)
        except (BackendError, CacheError) as error:
            failures.add(f"not built: {precision} by {flavour.name}: {error}")
            continue
        target = f" for {', '.join(request.compute_capabilities)}" if request.compute_capabilities else ""
        built.append(f"{precision} by {flavour.name} {flavour.version} of {path.name}{target}, {size / 1e6:.1f} MB")
        failures.report(built[-1])
    return built


def _size_of_engine(request: EngineRequest, flavour: Flavour, gpu: Device | None) -> int:
    """Builds it, unless it is there; its size in bytes."""
    with Progress(f"{flavour.name} {request.precision}", 100) as bar:
        return len(engine_for(request, None, flavour, gpu, lambda phase, share: bar.reach(round(share * 100), phase)))


def _files_for(bundle: Bundle, flavour: Flavour) -> list[tuple[Precision, Path]]:
    """The files that a TensorRT takes, of every batch: weak typing makes FP16 of the FP32 file by itself."""
    found: list[tuple[Precision, Path]] = []
    for row in bundle.manifest.variants:
        if row.form not in ("any", flavour.form):
            continue
        found.append((row.precision, bundle.path / row.file))
        if row.precision == "fp32" and not flavour.baked_precision:
            found.append(("fp16", bundle.path / row.file))
    return found
