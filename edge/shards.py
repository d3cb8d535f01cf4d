"""Frames in tar files (WebDataset's layout), for pools too large for one disk: written once, read in a stream from anywhere.

`index.json` beside the shards tells how many frames each has, so that a run of 100,000 frames starts without reading them.
Where they lie is anything that fsspec opens: a folder, `https://`, `s3://`.
"""

from __future__ import annotations

import hashlib
import itertools
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edge.errors import StorageError, TrainingError
from runtime.errors import EdgeloopError, MissingPackageError, first_line

INDEX = "index.json"
_MOST_BYTES = 64 * 2**20  # of one frame; a tar from elsewhere may claim anything
_TRIES, _PAUSE_S = 4, 0.5
_READ_AHEAD = 4 * 2**20
_HTTP = ("http://", "https://")
_ADDRESS = "give a folder, or an address that begins with https:// or s3://"
_WRITE = "write shards with: edge pool export POOL OUT"
# Of botocore, which need not be installed.
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound")
_Item = TypeVar("_Item")


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
            (data,) = _again(f"{url}/{INDEX}", lambda: _whole(f"{url}/{INDEX}"), _WRITE)
            return cls(url, ShardIndex.model_validate_json(data))
        except ValidationError as error:
            raise TrainingError(f"{url}/{INDEX} is no index of shards; {_WRITE}") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the index, in hex."""
        return hashlib.sha256(self.index.model_dump_json().encode()).hexdigest()

    def __len__(self) -> int:
        return sum(shard.frames for shard in self.index.shards)

    def frames(self, shard: Shard) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of each frame of a shard, in its order; one that vanishes in the middle is asked for again.

        Raises:
            StorageError: it cannot be read to its end.
        """
        return _again(f"{self.url}/{shard.name}", lambda: self._stream(shard), "put it back", ", then go on with --resume")

    def _stream(self, shard: Shard) -> Iterator[tuple[str, bytes]]:
        found = 0
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
                found += 1
                if found == shard.frames:  # readers count on what the index says
                    return
        raise EOFError(f"it ends after {found} of {shard.frames} frames")


def _opened(url: str) -> IO[bytes]:
    """Raises what the storage does; TrainingError for what is no address."""
    try:
        from fsspec.core import url_to_fs

        filesystem, path = url_to_fs(url)
        return cast(IO[bytes], filesystem.open(path, "rb", **_options(url)))
    except ImportError as error:
        wanted = error if error.__cause__ is None else error.__cause__  # fsspec tells a missing storage in words of its own
        if wanted is error or url.startswith((*_HTTP, "s3://")):
            raise MissingPackageError(getattr(wanted, "name", None) or "fsspec", "fleet") from error
        raise TrainingError(f"{url} cannot be read: {first_line(error)}; or {_ADDRESS}") from error
    except (FileNotFoundError, ValueError) as error:
        # Over HTTP fsspec tells whatever fails at first as a file that is not there.
        reason = error.__cause__ if error.__cause__ is not None and url.startswith(_HTTP) else error
        if isinstance(reason, ValueError):
            raise TrainingError(f"{url} cannot be read: {first_line(reason)}; {_ADDRESS}") from error
        raise reason  # noqa: B904


def _options(url: str) -> dict[str, Any]:
    """Streams are read from begin to end: fetch ahead, keep nothing."""
    if url.startswith(_HTTP):
        return {"block_size": 0}  # as it comes, also from servers that know no ranges
    return {"block_size": _READ_AHEAD, "cache_type": "readahead"} if url.startswith("s3://") else {}


def _whole(url: str) -> Iterator[bytes]:
    with _opened(url) as stream:
        yield stream.read(_MOST_BYTES)


def _again(url: str, items: Callable[[], Iterator[_Item]], missing: str, then: str = "") -> Iterator[_Item]:
    """What a stream gives; one that breaks is opened again and goes on where it broke.

    Args:
        url: what is read.
        items: opens it anew.
        missing: what to do where there is nothing.
        then: what follows any remedy.

    Raises:
        TrainingError: it broke too often, or asking again is no use; a `StorageError` where something follows.
    """
    broken = StorageError if then else TrainingError
    place = 0
    for attempt in range(_TRIES):
        try:
            for item in itertools.islice(items(), place, None):
                place += 1
                yield item
            return
        except EdgeloopError:
            raise
        except Exception as error:  # storages raise what they like: aiohttp's and botocore's errors are no OSError
            is_last = attempt == _TRIES - 1
            came_and_went = bool(then) and _is_gone(error)  # the index named it: it may come back
            if (told := _final(error, missing)) and (is_last or not came_and_went):
                raise broken(f"{url} cannot be read: {told}{then}") from error
            if is_last:
                cut = ", or export the pool again if the file is cut" if isinstance(error, tarfile.TarError) else ""
                raise broken(
                    f"{url} cannot be read: {first_line(error)} (asked {_TRIES} times); see to storage and network{cut}{then}"
                ) from error
        time.sleep(_PAUSE_S * 2**attempt)


def _is_gone(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) or getattr(error, "status", None) in (404, 410)


def _final(error: Exception, missing: str) -> str:
    """Reason and remedy where asking again is no use, "" elsewhere."""
    if _is_gone(error):
        return f"it does not exist; {missing}"
    if (
        getattr(error, "status", None) in (401, 403)
        or isinstance(error, PermissionError)
        or type(error).__name__ in _NO_CREDENTIALS
    ):
        return (
            f"access is refused ({first_line(error)}); give the right to read it (for s3://, AWS_PROFILE or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
        )
    return ""
