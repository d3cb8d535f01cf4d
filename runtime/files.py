"""Writing files so that a reader never sees half of one, and naming them by what they hold."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Writes `data` so that `path` holds the old bytes or the new ones, whatever is killed when.

    `mode` is narrowed by the process's umask; 0o600 keeps the file to its user from its first byte on.

    Raises:
        OSError: the folder is missing, unwritable or full; `path` is then unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)  # of a process with the same id that was killed
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def point_link(link: Path, target_name: str) -> None:
    """Makes the symbolic link `link` point at `target_name` beside it, in one step."""
    partial = link.with_name(f".{link.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target_name)
    partial.replace(link)


def link_or_copy(source: Path, target: Path) -> None:
    """Makes `target` the same file as `source`, or a copy across file systems.

    Raises:
        OSError: `source` is gone, or the folder cannot be written.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
