"""Frames in tar files (WebDataset's layout), for pools too large for one disk: written once, read in a stream from anywhere.

`index.json` beside the shards tells how many frames each has, so that a run of 100,000 frames starts without reading them.
Where they lie is anything that fsspec opens: a folder, `https://`, `s3://`.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import random
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import TrainingError
from runtime.errors import MissingPackageError, PoolError
from runtime.files import write_atomically
from runtime.pool import Pool
from runtime.progress import Progress

INDEX = "index.json"
_MOST_BYTES = 64 * 2**20  # of one frame; a tar from elsewhere may claim anything
_TRIES, _PAUSE_S = 4, 0.5
_READ_AHEAD = 4 * 2**20


class Shard(BaseModel):
    """One tar file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")
    frames: int = Field(ge=1)


class ShardIndex(BaseModel):
    """The whole of index.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = Field(default="edgeloop.shards/1", pattern=r"^edgeloop\.shards/1$")
    shards: tuple[Shard, ...] = Field(min_length=1)


def export_shards(pool: Path, out: Path, per_shard: int = 1000) -> ShardIndex:
    """Writes a pool's frames as shards, in a seeded random order; `index.json` comes last, so a killed export is none.

    Raises:
        PoolError: no pool, an empty one, or a damaged frame.
        TrainingError: `out` holds shards already, or cannot be written.
    """
    if (out / INDEX).exists():
        raise TrainingError(f"{out} holds shards already; choose another folder")
    shards = []
    with Pool.open(pool) as opened:
        entries = opened.entries(with_embeddings=False)
        if not entries:
            raise PoolError(f"pool {pool} is empty; fill it with: edge pool add {pool} IMAGES")
        random.Random(0).shuffle(entries)  # consecutive frames look alike; a shard shall not
        try:
            out.mkdir(parents=True, exist_ok=True)
            with Progress("export", len(entries)) as progress:
                for number, start in enumerate(range(0, len(entries), per_shard)):
                    part = entries[start : start + per_shard]
                    shard = Shard(name=f"shard-{number:06d}.tar", frames=len(part))
                    with tarfile.open(out / shard.name, "w") as tar:
                        for entry in part:
                            data = opened.read_jpeg(entry)
                            member = tarfile.TarInfo(f"{entry.sha256}.jpg")
                            member.size = len(data)
                            tar.addfile(member, io.BytesIO(data))
                            progress.advance(shard.name)
                    shards.append(shard)
        except OSError as error:
            raise TrainingError(f"{out} cannot be written: {error.strerror or error}; free some space") from error
    index = ShardIndex(shards=tuple(shards))
    write_atomically(out / INDEX, index.model_dump_json(indent=2).encode())
    return index


@dataclass(frozen=True, slots=True)
class ShardSet:
    """Shards somewhere.

    Attributes:
        url: of the folder, without a slash at the end.
        index: what is there.
    """

    url: str
    index: ShardIndex

    @classmethod
    def open(cls, url: str) -> ShardSet:
        """Reads the index.

        Raises:
            TrainingError: nothing there, or no index of ours.
            MissingPackageError: no package for that kind of address.
        """
        url = url.rstrip("/")
        try:
            data = _retried(lambda: _read_whole(f"{url}/{INDEX}"), f"{url}/{INDEX}")
            return cls(url, ShardIndex.model_validate_json(data))
        except ValidationError as error:
            raise TrainingError(f"{url}/{INDEX} is no index of shards; write them with: edge pool export") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the index, in hex."""
        return hashlib.sha256(self.index.model_dump_json().encode()).hexdigest()

    def __len__(self) -> int:
        return sum(shard.frames for shard in self.index.shards)

    def frames(self, shard: Shard, skip: int = 0) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each frame of a shard, in its order; one that vanishes in the middle is asked for again.

        Raises:
            TrainingError: it cannot be read to its end.
        """
        place, told = skip, f"{self.url}/{shard.name}"
        for attempt in range(_TRIES):
            try:
                for position, found in enumerate(itertools.islice(self._stream(shard), shard.frames)):
                    if position >= place:
                        place = position + 1
                        yield found
                if place < shard.frames:
                    raise EOFError(f"it ends after {place} of {shard.frames} frames")
                return
            except Exception as error:  # storages raise what they like: aiohttp's and botocore's errors are no OSError
                if attempt == _TRIES - 1:
                    raise TrainingError(
                        f"{told} cannot be read: {error}; see to the storage and go on with --resume"
                    ) from error
                time.sleep(_PAUSE_S * 2**attempt)

    def _stream(self, shard: Shard) -> Iterator[tuple[str, bytes]]:
        with _opened(f"{self.url}/{shard.name}") as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.size > _MOST_BYTES:
                    raise tarfile.ReadError(f"{member.name[:80]} claims {member.size} bytes")
                data = cast(IO[bytes], tar.extractfile(member)).read()
                if len(data) < member.size:
                    raise EOFError(f"{member.name[:80]} is cut off")
                yield member.name, data


def _opened(url: str) -> IO[bytes]:
    try:
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(url)
        return cast(IO[bytes], filesystem.open(path, "rb", **_options(url)))
    except ImportError as error:
        raise MissingPackageError(error.name or "fsspec", "fleet") from error


def _options(url: str) -> dict[str, Any]:
    """Streams are read from begin to end: fetch ahead, keep nothing."""
    if url.startswith(("http://", "https://")):
        return {"block_size": 0}  # as it comes, also from servers that know no ranges
    return {"block_size": _READ_AHEAD, "cache_type": "readahead"} if url.startswith("s3://") else {}


def _read_whole(url: str) -> bytes:
    with _opened(url) as stream:
        return stream.read(_MOST_BYTES)


def _retried(read: Any, told: str) -> Any:
    for attempt in range(_TRIES):
        try:
            return read()
        except FileNotFoundError as error:
            raise TrainingError(f"{told} does not exist; write shards with: edge pool export POOL OUT") from error
        except OSError as error:
            if attempt == _TRIES - 1:
                raise TrainingError(f"{told} cannot be read: {error}; check address, network and credentials") from error
            time.sleep(_PAUSE_S * 2**attempt)
    raise AssertionError("unreachable")
