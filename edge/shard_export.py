"""Writes a pool into shards: tar files of some thousand frames, and an index."""

from __future__ import annotations

import io
import itertools
import random
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from edge.errors import TrainingError
from edge.shards import INDEX, Shard, ShardIndex
from runtime.errors import PoolError
from runtime.files import write_atomically
from runtime.images import MOST_DAMAGED
from runtime.pool import Pool, PoolEntry
from runtime.progress import Progress


def export_shards(pool: Path, out: Path, per_shard: int = 1000) -> ShardIndex:
    """Writes a pool's frames as shards, in a seeded random order; `index.json` comes last, so a killed export is none.

    Frames that a daemon evicts meanwhile are left out; damaged ones as well, which are named on stderr.

    Raises:
        PoolError: no pool, an empty one, or too many damaged frames.
        TrainingError: `out` holds shards already, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is a file; name a folder for the shards")
    is_new = not out.exists()
    if (out / INDEX).exists():
        raise TrainingError(f"{out} holds shards already; choose another folder")
    with Pool.open(pool) as opened:
        entries = opened.entries(with_embeddings=False)
        random.Random(0).shuffle(entries)  # consecutive frames look alike; a shard shall not
        try:
            with Progress("export", len(entries)) as progress:
                shards = _write_shards(out, _whole_frames(opened, entries, progress), per_shard, is_new=is_new)
            if not shards:
                raise PoolError(f"pool {pool} is empty; fill it with: edge pool add {pool} IMAGES")
            index = ShardIndex(shards=shards)
            write_atomically(out / INDEX, index.model_dump_json(indent=2).encode())
        except OSError as error:
            raise TrainingError(f"{out} cannot be written: {error.strerror or error}; free some space") from error
    return index


def _whole_frames(pool: Pool, entries: list[PoolEntry], progress: Progress) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of those that are there and whole.

    Raises:
        PoolError: too many are damaged.
    """
    damaged: list[str] = []
    for entry in entries:
        name = f"{entry.sha256}.jpg"
        progress.advance(name)
        try:
            data = pool.read_jpeg(entry)
        except PoolError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # evicted a moment ago
                continue
            damaged.append(name)
            if len(damaged) > MOST_DAMAGED * len(entries):
                raise PoolError(
                    f"{len(damaged)} of {len(entries)} frames are damaged, first {damaged[0]}; find and remove them with: "
                    f"edge pool check {pool.path} --repair"
                ) from error
            continue
        yield name, data
    for name in damaged:
        sys.stderr.write(f"left out, damaged: {name}\n")


def _write_shards(out: Path, frames: Iterator[tuple[str, bytes]], per_shard: int, *, is_new: bool) -> tuple[Shard, ...]:
    """Writes frames as long as there are any; what was written of an export that fails is removed."""
    written: dict[str, int] = {}
    try:
        for number, first in enumerate(frames):
            out.mkdir(parents=True, exist_ok=True)
            name = f"shard-{number:06d}.tar"
            written[name] = 0
            written[name] = _write_tar(out / name, itertools.chain([first], itertools.islice(frames, per_shard - 1)))
    except BaseException:
        for name in written:
            (out / name).unlink(missing_ok=True)
        if is_new and out.is_dir():
            out.rmdir()
        raise
    return tuple(Shard(name=name, frames=count) for name, count in written.items())


def _write_tar(path: Path, frames: Iterable[tuple[str, bytes]]) -> int:
    """Returns how many there were."""
    count = 0
    with tarfile.open(path, "w") as tar:
        for count, (name, data) in enumerate(frames, 1):  # noqa: B007
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return count
