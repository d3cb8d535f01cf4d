"""The pool as it was when a run began: hard links to its frames, so that a daemon beside it may go on evicting.

A killed run resumes on exactly the frames that it began with. Links cost no space; across file systems frames are copied.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge.errors import TrainingError
from runtime.errors import PoolError
from runtime.files import link_or_copy
from runtime.images import decode_image
from runtime.pool import Pool

FRAMES = "frames"
_NAME = re.compile(r"\d{7,}-[0-9a-f]{64}\.jpg")


class Snapshot:
    """The frames of one run, in the pool's order; named `<position>-<sha256>.jpg` in `<run folder>/frames`."""

    def __init__(self, folder: Path) -> None:
        """Opens the snapshot in a run folder.

        Raises:
            TrainingError: there is none.
        """
        self._folder = folder / FRAMES
        if not self._folder.is_dir():
            raise TrainingError(f"{folder} holds no {FRAMES} to resume on; start a new run in another --out")
        self._paths = sorted(self._folder.glob("*.jpg"))

    @classmethod
    def take(cls, pool: Path, folder: Path, until_s: float | None, at_least: int) -> Snapshot:
        """Links the pool's frames captured up to `until_s` (None: all) into a run folder.

        Raises:
            PoolError: no pool, or an empty one.
            TrainingError: fewer than `at_least` frames, the run folder cannot be written, or its `frames` are somebody's own.
        """
        with Pool.open(pool) as opened:
            entries = opened.entries(until_s)
            if not entries:
                raise PoolError(f"pool {pool} is empty; fill it with: edge pool add {pool} IMAGES")
            if len(entries) < at_least:
                raise TrainingError(f"pool {pool} holds {len(entries)} frame(s), but {at_least} are needed; collect more")
            frames, partial = folder / FRAMES, folder / f".{FRAMES}.partial"
            if any(not _NAME.fullmatch(path.name) for path in frames.glob("*")):
                raise TrainingError(f"{frames} holds other files, where a run keeps its frames; choose another --out")
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                for position, entry in enumerate(entries):
                    with contextlib.suppress(FileNotFoundError):  # evicted a moment ago
                        link_or_copy(opened.file_of(entry), partial / f"{position:07d}-{entry.sha256}.jpg")
                shutil.rmtree(frames, ignore_errors=True)
                partial.rename(frames)
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise TrainingError(
                    f"{folder} cannot be written: {error.strerror}; free some space or choose another --out"
                ) from error
        return cls(folder)

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def digest(self) -> str:
        """SHA-256 over the frames' digests, in hex."""
        return hashlib.sha256("".join(_sha256_in_name(path) for path in self._paths).encode()).hexdigest()

    def name(self, position: int) -> str:
        """What a frame is called in its pool."""
        return f"{_sha256_in_name(self._paths[position])}.jpg"

    def path(self, position: int) -> Path:
        """The file of a frame."""
        return self._paths[position]

    def read(self, position: int) -> NDArray[np.uint8]:
        """One frame: uint8 (h, w, 3) BGR.

        Raises:
            PoolError: the frame is damaged.
        """
        path = self._paths[position]
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != _sha256_in_name(path):
            raise PoolError(
                f"pool frame {_sha256_in_name(path)}.jpg is damaged ({len(data)} bytes); find and remove such frames with: "
                "edge pool check POOL --repair"
            )
        return decode_image(data, path.name)

    @staticmethod
    def remove(folder: Path) -> None:
        """Forgets the frames of a run folder, once the run is done."""
        shutil.rmtree(folder / FRAMES, ignore_errors=True)


def _sha256_in_name(path: Path) -> str:
    return path.stem.partition("-")[2]
