"""Writing a bundle: staged beside its place, named by its content, and only then visible."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from converters.errors import ConversionError
from runtime.bundle import Bundle
from runtime.files import write_atomically
from runtime.manifest import Manifest


@contextmanager
def staging_folder(beside: Path) -> Iterator[Path]:
    """An empty folder next to `beside`, removed afterwards unless it was moved away.

    Raises:
        ConversionError: the parent folder cannot be written.
    """
    for stale in beside.parent.glob(".*.partial"):
        _remove_if_left(stale)
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{beside.name}.", suffix=".partial", dir=beside.parent))
        staging.chmod(0o755)  # a daemon of another user reads the bundle that it becomes
        lock = _locked(staging)
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
        os.close(lock)


def _locked(folder: Path) -> int:
    """A lock on the folder that lasts as long as this process, and not longer, whatever ends it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _remove_if_left(stale: Path) -> None:
    """Removes the folder of a conversion that was killed; one that is under way holds its lock."""
    with contextlib.suppress(OSError):
        if not stale.is_dir():  # a single file that is being written
            return
        lock = _locked(stale)
        shutil.rmtree(stale, ignore_errors=True)
        os.close(lock)


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
