"""Engines of this device, built once: the key of a plan is everything that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runtime.errors import BackendError, CacheError
from runtime.files import sha256_of_file
from runtime.sealed_folder import SealedFolder, cache_folder
from runtime.tensorrt.callbacks import Progress
from runtime.tensorrt.device import Device, find_device
from runtime.tensorrt.engine_from_onnx import NO_GPU_NAMED, BuildOptions, Precision, engine_from_onnx
from runtime.tensorrt.flavour import Flavour, load_flavour

log = logging.getLogger(__name__)

# Grows whenever engine_from_onnx builds something else from the same inputs.
BUILD_RECIPE = 1
# The running release, the one before and the next, in three precisions at two batch sizes; a plan is 5 to 60 MB.
_KEPT_PLANS = 18


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What shall be built.

    Attributes:
        onnx_path: see `engine_from_onnx`.
        precision: `fp32`, `fp16` or `int8`.
        ranges_sha256: digest of the calibration that the INT8 ranges came from, if any.
        options: limits and targets.
    """

    onnx_path: Path
    precision: Precision
    ranges_sha256: str | None = None
    options: BuildOptions = field(default_factory=BuildOptions)


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Everything that a plan depends on; another value of any is another plan."""

    onnx_sha256: str
    precision: Precision
    ranges_sha256: str | None
    options: BuildOptions
    flavour: str
    version: str
    device: Device | None
    recipe: int = BUILD_RECIPE

    @property
    def about(self) -> dict[str, object]:
        """The key as JSON values."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 over all of it, in hex."""
        return _digest(self.about)


def engine_key(request: EngineRequest, flavour: Flavour, device: Device | None) -> EngineKey:
    """The key of a request on a device; None builds for `request.options.compute_capabilities` (RTX).

    Raises:
        BackendError: neither a device nor targets, or no such file.
    """
    if device is None and not request.options.compute_capabilities:
        raise BackendError(
            NO_GPU_NAMED
            if flavour.rtx
            else f"there is no NVIDIA GPU here that {flavour.name} could build for; run on the device"
        )
    try:
        onnx_sha256 = sha256_of_file(request.onnx_path)
    except OSError as error:
        raise BackendError(f"{request.onnx_path} cannot be read: {error.strerror}; fetch the bundle again") from error
    return EngineKey(
        onnx_sha256, request.precision, request.ranges_sha256, request.options, flavour.name, flavour.version, device
    )


class EngineCache:
    """Plans and kernel timings of this device; see `SealedFolder` for why they can be trusted."""

    def __init__(self, folder: Path | None = None) -> None:
        """Opens `folder`/engines, or that of `cache_folder()`.

        Raises:
            CacheError: it cannot be written or belongs to someone else.
        """
        self.sealed = SealedFolder((folder or cache_folder()) / "engines")

    def load(self, key: EngineKey) -> bytes | None:
        """The plan of `key`, if this device built it and nobody touched it since; else None."""
        plan = self.sealed.read(_plan_name(key), key.about)
        if plan is not None:
            os.utime(self.sealed.path / _plan_name(key))  # the least recently used go first
        return plan

    def store(self, key: EngineKey, plan: bytes) -> None:
        """Keeps a plan and drops the oldest beyond `_KEPT_PLANS`. The lock must be held."""
        self.sealed.write(_plan_name(key), key.about, plan)
        plans = sorted(self.sealed.path.glob("*.plan"), key=lambda path: path.stat().st_mtime, reverse=True)
        for stale in plans[_KEPT_PLANS:]:
            self.sealed.remove(stale.name)

    def timings(self, key: EngineKey) -> SealedTimings:
        """The kernel timings for builds with that key's TensorRT on its device."""
        return SealedTimings(self.sealed, {name: key.about[name] for name in ("flavour", "version", "device")})


class SealedTimings:
    """A `TimingCache` in a sealed folder."""

    def __init__(self, sealed: SealedFolder, about: dict[str, object]) -> None:
        self._sealed, self._about, self._name = sealed, about, f"{_digest(about)}.timing"

    def read(self) -> bytes:
        """What was kept, or nothing."""
        return self._sealed.read(self._name, self._about) or b""

    def write(self, data: bytes) -> None:
        """Keeps it; timings that cannot be kept only make the next build slower."""
        try:
            self._sealed.write(self._name, self._about, data)
        except CacheError as error:
            log.warning("kernel timings are not kept: %s", error)


def engine_for(
    request: EngineRequest,
    cache: EngineCache | None = None,
    flavour: Flavour | None = None,
    device: Device | None = None,
    progress: Progress = lambda phase, share: None,
    afresh: bool = False,
) -> bytes:
    """The plan of a request: from the cache, or built and kept. What is not given is found on this device.

    `afresh` builds over a kept plan, one that the runtime does not load.
    Of several processes that want the same plan, one builds. Killed at any time, nothing half-made is ever read.

    Raises:
        BackendError, MissingPackageError: TensorRT is missing or cannot build it; see `engine_from_onnx`.
        CacheError: the cache cannot be used; nothing was built.
    """
    flavour, device = flavour or load_flavour(), device or find_device()
    key = engine_key(request, flavour, device)
    cache = cache or EngineCache()
    if not afresh and (plan := cache.load(key)) is not None:
        return plan
    with cache.sealed.lock():
        if not afresh and (plan := cache.load(key)) is not None:  # built while this process waited
            return plan
        log.info("building an engine of %s, %s, with %s %s", request.onnx_path, key.precision, flavour.name, flavour.version)
        plan = engine_from_onnx(
            request.onnx_path, key.precision, key.options, trt=flavour.trt, progress=progress, timing=cache.timings(key)
        )
        if sha256_of_file(request.onnx_path) != key.onnx_sha256:
            raise BackendError(f"{request.onnx_path} changed while its engine was built; start again")
        try:
            cache.store(key, plan)
        except CacheError as error:  # minutes of work that can still run
            log.error("the engine is not kept and will be built again next time: %s", error)
    return plan


def _plan_name(key: EngineKey) -> str:
    return f"{key.digest}.plan"


def _digest(about: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
