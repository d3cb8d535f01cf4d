"""Writing files so that a reader never sees half of one, and naming them by what they hold."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` so that `path` holds the old bytes or the new ones, whatever is killed when.

    Raises:
        OSError: the folder is missing, unwritable or full; `path` is then unchanged.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
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
