"""Which engine and precision this device runs: what was measured here, and nothing else.

A bundle carries the verdict of the machine that made it. It counts on devices with the same instructions and engine
versions. Elsewhere `edge-convert build BUNDLE --pool POOL` measures again and keeps the verdict beside the engines; until
then FP32 is run, which is right everywhere.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from runtime.bundle import Bundle
from runtime.device import Device
from runtime.errors import CacheError
from runtime.manifest import Parity, Precision, Preferred
from runtime.sealed_folder import SealedFolder, cache_folder

log = logging.getLogger(__name__)


class Verdict(BaseModel):
    """A gate's outcome on one device.

    Attributes:
        bundle: digest of the bundle.
        device: where it was measured.
        preferred: what `auto` means there.
        parity: the measurements.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    device: Device
    preferred: Preferred
    parity: list[Parity]


def preferred_here(
    bundle: Bundle, engine: str | None = None, precision: str | None = None, folder: Path | None = None
) -> Preferred:
    """What `auto` means on this device.

    Args:
        bundle: to be run.
        engine: what the user has fixed; None leaves it open.
        precision: the same.
        folder: replaces the device's own cache.
    """
    here, manifest = Device.current(), bundle.manifest
    kept = load_verdict(bundle, folder)
    device, rows, best = (
        (kept.device, kept.parity, kept.preferred) if kept else (manifest.measured_on, manifest.parity, manifest.preferred)
    )
    if engine is None and precision is None and best.engine in here.engines and _counts(best, here, device):
        return best
    if not _counts(best, here, device):
        log.warning(
            "%s was not measured on a device like this one, so FP32 runs where nothing else is fixed; measure with: "
            "edge-convert build %s --pool POOL", bundle.path, bundle.path,
        )  # fmt: skip
    sound = [
        row for row in rows
        if row.batch == 1 and not row.refused and not row.is_proxy and row.engine in here.engines
        and _counts(row, here, device) and engine in (None, row.engine) and precision in (None, row.precision)
    ]  # fmt: skip
    if sound:
        chosen = min(sound, key=lambda row: row.latency_p50_ms)
        return Preferred(engine=chosen.engine, precision=chosen.precision, reason="the fastest that holds with what was fixed")
    return _unmeasured(bundle, engine, precision, here)


def measured_here(bundle: Bundle, folder: Path | None = None) -> list[Parity]:
    """What was measured on a device like this one, by the release or by `edge-convert build` here; `folder` as above."""
    here, kept = Device.current(), load_verdict(bundle, folder)
    device, rows = (kept.device, kept.parity) if kept else (bundle.manifest.measured_on, bundle.manifest.parity)
    return [row for row in rows if not row.is_proxy and here.serves(row.engine, device)]


def _counts(chosen: Preferred | Parity, here: Device, device: Device) -> bool:
    """FP32 is right everywhere; anything else where it was measured."""
    return chosen.precision == "fp32" or here.serves(chosen.engine, device)


def _unmeasured(bundle: Bundle, engine: str | None, precision: str | None, here: Device) -> Preferred:
    """What was asked for, told that nothing speaks for it; FP32 where the precision is open."""
    asked: Precision = "int8" if precision == "int8" else "fp16" if precision == "fp16" else "fp32"
    if asked != "fp32":
        log.warning("%s of %s was not measured here or does not hold, but it was asked for", asked.upper(), bundle.path)
    return Preferred(engine=engine or _installed_engine(here), precision=asked, reason="not measured on this device")


def load_verdict(bundle: Bundle, folder: Path | None = None) -> Verdict | None:
    """The verdict that this device keeps for a bundle, or None; a cache that cannot be used is no verdict."""
    try:
        path = _folder(folder)
        if not path.is_dir():
            return None
        data = SealedFolder(path).read(_name(bundle), {"bundle": bundle.digest})
        return Verdict.model_validate_json(data) if data is not None else None
    except (CacheError, ValidationError, OSError) as error:
        log.warning("the verdict kept for %s cannot be used: %s", bundle.path, error)
        return None


def refuse_unwritable(folder: Path | None = None) -> None:
    """Looks whether `save_verdict` will do, before minutes of measuring.

    Raises:
        CacheError: it will not.
    """
    SealedFolder(_folder(folder)).refuse_unwritable()


def save_verdict(bundle: Bundle, verdict: Verdict, folder: Path | None = None) -> None:
    """Keeps a verdict, under this device's seal.

    Raises:
        CacheError: the cache cannot be written, or belongs to someone else.
    """
    sealed = SealedFolder(_folder(folder))
    with sealed.lock():
        sealed.write(_name(bundle), {"bundle": bundle.digest}, verdict.model_dump_json().encode())


def _folder(folder: Path | None) -> Path:
    return (folder or cache_folder()) / "verdicts"


def _name(bundle: Bundle) -> str:
    return f"{bundle.digest[:16]}.verdict"


def _installed_engine(device: Device) -> str:
    known = ("openvino", "onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
    return next((engine for engine in known if engine in device.engines), "onnxruntime")
