"""Writing a bundle: staged beside its place, named by its content, and only then visible."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from converters.errors import ConversionError
from runtime.bundle import Bundle
from runtime.files import write_atomically
from runtime.manifest import Manifest

# .edgeloop-x1y2z3/      0700, beside the bundle that is being made
#   edgeloop-staging    says that it is ours; locked as long as its conversion runs
#   bundle/             what becomes the bundle
_PREFIX, _MARKER, _INSIDE = ".edgeloop-", "edgeloop-staging", "bundle"
_LOCK = ".edgeloop-lock"  # held in the parent while folders are made and swept, which takes milliseconds; one a user


@contextmanager
def staging_folder(beside: Path) -> Iterator[Path]:
    """An empty folder on the file system of `beside`, removed afterwards unless it was moved away.

    What killed conversions left beside it is removed; nothing else is, whatever its name.

    Raises:
        ConversionError: the parent folder cannot be written.
    """
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        with _lock_in(beside.parent):
            _sweep(beside.parent)
            outer, marker = _make(beside.parent)
    except OSError as error:
        raise ConversionError(f"{beside.parent} cannot be written: {error.strerror}; choose another --out") from error
    try:
        yield outer / _INSIDE
    except OSError as error:
        where = error.filename or beside
        raise ConversionError(
            f"{where}: {error.strerror or error}; check the path, its permissions and the free space"
        ) from error
    finally:
        _remove(outer)
        os.close(marker)


@contextmanager
def _lock_in(parent: Path) -> Iterator[None]:
    """One process of a user at a time. The file goes with its holder, so whoever waited for a removed one asks again."""
    path = parent / f"{_LOCK}-{os.geteuid()}"
    while not _is_still(path, lock := _locked(path, os.O_CREAT, fcntl.LOCK_EX)):
        os.close(lock)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _make(parent: Path) -> tuple[Path, int]:
    """A staging folder, and the lock on its marker, which lasts as long as this process, whatever ends it."""
    outer = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        marker = _locked(outer / _MARKER, os.O_CREAT | os.O_EXCL, fcntl.LOCK_EX)
        (outer / _INSIDE).mkdir()
        (outer / _INSIDE).chmod(0o755)  # a daemon of another user reads the bundle that it becomes
    except OSError:
        _remove(outer)
        raise
    return outer, marker


def _sweep(parent: Path) -> None:
    """Removes what killed conversions left. The lock in `parent` must be held, so that no folder is half made."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # it is in use, not ours, or gone meanwhile
            status = folder.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    if not any(folder.iterdir()):  # killed before it was marked
        folder.rmdir()
        return
    marker = _locked(folder / _MARKER, 0, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _remove(folder)
    os.close(marker)


def _remove(outer: Path) -> None:
    """The marker goes after what it marks, so that a kill in between leaves a folder that still says whose it is."""
    shutil.rmtree(outer / _INSIDE, ignore_errors=True)
    with contextlib.suppress(OSError):
        if not (outer / _INSIDE).exists():
            (outer / _MARKER).unlink(missing_ok=True)
            outer.rmdir()


def _locked(path: Path, flags: int, kind: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o600)
    try:
        fcntl.flock(descriptor, kind)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


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
