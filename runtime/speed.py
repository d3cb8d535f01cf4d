"""Which engine is the fastest here, where nobody measured yet: timed once on this device and remembered.

Only files whose numbers are right everywhere (FP32) or that the user asked for are timed; whether INT8 holds is the
verdict's question (`runtime.verdict`), which needs frames.
"""

from __future__ import annotations

import logging
import statistics
import time
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.backends import SETTLE_S, Backend, model_file, open_model, warm
from runtime.bundle import Bundle
from runtime.device import Device, engines_here, usable_cores
from runtime.errors import BackendError, BundleError, CacheError, MissingPackageError
from runtime.sealed_folder import SealedFolder, cache_folder

log = logging.getLogger(__name__)

_RUNS = 15  # of each engine, turn by turn: a second or two, once for each release and version of an engine


class Speed(BaseModel):
    """What was measured: milliseconds of one inference, median, by engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    latency_p50_ms: dict[str, float]


def fastest_engine(bundle: Bundle, precision: str, threads: int = 0, folder: Path | None = None) -> str:
    """The engine of this device that runs a precision of a bundle fastest.

    Remembered under the bundle's digest, the device's instructions, the engines' versions and the threads; `folder`
    replaces the device's own cache. A cache that cannot be used costs the time of measuring, nothing else.

    Raises:
        BackendError: no engine of this device runs it.
    """
    key = _key(bundle, precision, threads)
    sealed = _sealed(folder)
    known = _read(sealed, key)
    if known is None:
        known = Speed(latency_p50_ms=_measure(bundle, precision, threads))
        _keep(sealed, key, known)
    best = min(known.latency_p50_ms, key=lambda engine: known.latency_p50_ms[engine])
    told = ", ".join(f"{engine} {value:.1f} ms" for engine, value in sorted(known.latency_p50_ms.items()))
    log.info("measured on this device, %s: %s; %s runs", precision, told, best)
    return best


def _measure(bundle: Bundle, precision: str, threads: int) -> dict[str, float]:
    candidates = _open_all(bundle, precision, threads)
    canvas = bundle.preprocess.buffer(1)
    canvas[:] = np.random.default_rng(0).integers(0, 256, canvas.shape, dtype=np.uint8)
    times: dict[str, list[float]] = {}
    try:
        for engine, backend in candidates.items():
            try:
                warm(backend, canvas)
                times[engine] = []
            except BackendError as error:  # loads, but does not run
                log.warning("left out: %s", error)
        for _ in range(_RUNS if len(times) > 1 else 1):
            for engine, values in times.items():
                time.sleep(SETTLE_S)
                start = time.perf_counter()
                candidates[engine].infer(canvas)
                values.append(time.perf_counter() - start)
    finally:
        for backend in candidates.values():
            backend.close()
    if not times:
        raise BackendError(f"no engine here can run {bundle.path}; install one with: pip install 'edgeloop[cpu]'")
    return {engine: statistics.median(values) * 1e3 for engine, values in times.items()}


def _open_all(bundle: Bundle, precision: str, threads: int) -> dict[str, Backend]:
    opened: dict[str, Backend] = {}
    for engine in engines_here():
        try:
            opened[engine] = open_model(engine, model_file(bundle, engine, precision), precision, threads)
        except (BundleError, MissingPackageError):
            continue
        except BackendError as error:
            log.warning("left out: %s", error)
    return opened


def _key(bundle: Bundle, precision: str, threads: int) -> dict[str, object]:
    device = Device.current()
    return {
        "bundle": bundle.digest, "precision": precision, "threads": threads or usable_cores(),
        "machine": device.machine, "isa": ",".join(device.isa), "cpu": device.cpu,
        "engines": ",".join(f"{name} {version}" for name, version in sorted(device.engines.items())),
    }  # fmt: skip


def _sealed(folder: Path | None) -> SealedFolder | None:
    try:
        return SealedFolder((folder or cache_folder()) / "speeds")
    except (CacheError, OSError) as error:
        log.warning("what is measured cannot be kept: %s", error)
        return None


def _name(key: dict[str, object]) -> str:
    return f"{str(key['bundle'])[:16]}.{key['precision']}.{key['threads']}.speed"


def _read(sealed: SealedFolder | None, key: dict[str, object]) -> Speed | None:
    try:
        data = sealed.read(_name(key), key) if sealed else None
        return Speed.model_validate_json(data) if data else None
    except (CacheError, ValidationError, OSError) as error:
        log.warning("what was measured cannot be used: %s", error)
        return None


def _keep(sealed: SealedFolder | None, key: dict[str, object], speed: Speed) -> None:
    if sealed is None:
        return
    try:
        with sealed.lock():
            sealed.write(_name(key), key, speed.model_dump_json().encode())
    except (CacheError, OSError) as error:
        log.warning("what was measured cannot be kept: %s", error)
