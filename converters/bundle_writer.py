"""Writing a bundle: staged beside its place, named by its content, and only then visible."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from converters.errors import ConversionError
from runtime.bundle import Bundle, Manifest
from runtime.files import write_atomically


@contextmanager
def staging_folder(beside: Path) -> Iterator[Path]:
    """An empty folder next to `beside`, removed afterwards unless it was moved away.

    Raises:
        ConversionError: the parent folder cannot be written.
    """
    staging = beside.with_name(f".{beside.name}.{os.getpid()}.partial")
    for stale in beside.parent.glob(f".{beside.name}.*.partial"):
        pid = stale.name.split(".")[-2]
        if pid.isdigit() and not Path("/proc", pid).exists():  # left by a conversion that was killed
            shutil.rmtree(stale, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
    except OSError as error:
        raise ConversionError(f"{beside.parent} cannot be written: {error.strerror}; choose another --out") from error
    try:
        yield staging
    except OSError as error:
        where = error.filename or beside
        raise ConversionError(
            f"{where}: {error.strerror or error}; check the path, its permissions and the free space"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def finish_bundle(staging: Path, manifest: Manifest, out: Path) -> Bundle:
    """Writes the manifest into `staging` and moves the folder to `out`.

    Raises:
        ConversionError: `out` exists and holds something else.
    """
    write_atomically(staging / "manifest.json", manifest_bytes(manifest))
    if out.exists():
        if (out / "manifest.json").is_file() and (out / "manifest.json").read_bytes() == manifest_bytes(manifest):
            return Bundle.open(out)
        raise ConversionError(f"{out} exists already; remove it, or choose another --out")
    staging.replace(out)
    return Bundle.open(out)


def manifest_bytes(manifest: Manifest) -> bytes:
    """The exact bytes of `manifest.json`."""
    return (manifest.model_dump_json(indent=2) + "\n").encode()


def manifest_digest(manifest: Manifest) -> str:
    """SHA-256 of `manifest.json`, in hex: the bundle's digest."""
    return hashlib.sha256(manifest_bytes(manifest)).hexdigest()
