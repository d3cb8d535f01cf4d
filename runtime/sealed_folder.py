"""A folder of files that only this device could have written.

A plan is native code, so one that someone else put in its place must never be loaded. Each file has a JSON sidecar with
what the file is and an HMAC-SHA256 over both; the key is made on first use and never leaves the folder.

engines/              0700, of this user
  hmac.key            32 random bytes, 0600
  build.lock          held while something is built and written
  3f9c….plan          the data, 0600
  3f9c….plan.json     what it is, and the seal
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import CacheError
from runtime.files import write_atomically

log = logging.getLogger(__name__)

_KEY, _LOCK = "hmac.key", "build.lock"
_DATA = re.compile(r"[0-9a-f]{16,64}\.[a-z]+")  # a digest and what it is
_KEY_BYTES = 32  # as many as the hash gives
_PURPOSE = b"edgeloop sealed file 1\n"
_ONLY_OWNER = 0o600


def cache_folder() -> Path:
    """`EDGELOOP_CACHE`, else `XDG_CACHE_HOME`/edgeloop, else ~/.cache/edgeloop; made when something is put there.

    Raises:
        CacheError: none of them is set and the user has no home.
    """
    if own := os.environ.get("EDGELOOP_CACHE"):
        return Path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "edgeloop"
    try:
        return Path.home() / ".cache" / "edgeloop"
    except RuntimeError as error:
        raise CacheError("this user has no home folder for engines; set EDGELOOP_CACHE to a folder of its own") from error


class SealedFolder:
    """An open folder.

    Attributes:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        """Opens the folder, making it and its key when they are not there.

        Raises:
            CacheError: it cannot be written, is a link, or others own it or may enter it.
        """
        self.path = path
        with _told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(mode=0o700, exist_ok=True)
            _refuse_strangers(path, path.lstat(), stat.S_IFDIR)
            self._secret = self._key()

    def read(self, name: str, about: Mapping[str, object]) -> bytes | None:
        """The data of `name`, if it is there, is what `about` says and carries this device's seal; else None.

        A file that fails is told and left: the caller makes it anew, and a writer may be just between its two files.

        Raises:
            CacheError: the folder cannot be read.
        """
        with _told(self.path):
            try:
                sidecar, data = self._sidecar(name).read_bytes(), (self.path / name).read_bytes()
            except FileNotFoundError:
                return None
            if hmac.compare_digest(sidecar, self._sealed(name, about, data)):
                return data
            log.warning("%s is damaged, altered or from elsewhere: it is not used, but made again", self.path / name)
            return None

    def write(self, name: str, about: Mapping[str, object], data: bytes) -> None:
        """Keeps `data`; whoever reads finds it whole or not at all. The lock must be held.

        Raises:
            CacheError: the folder cannot be written or is full.
        """
        with _told(self.path):
            write_atomically(self.path / name, data, _ONLY_OWNER)
            write_atomically(self._sidecar(name), self._sealed(name, about, data), _ONLY_OWNER)

    def remove(self, name: str) -> None:
        """Removes a file; the sidecar goes first, since nothing is read without it."""
        self._sidecar(name).unlink(missing_ok=True)
        (self.path / name).unlink(missing_ok=True)

    def refuse_unwritable(self) -> None:
        """Looks whether something could be kept here, before it takes minutes to make. Waits for the lock.

        Raises:
            CacheError: nothing could.
        """
        with self.lock(), _told(self.path):
            probe = self.path / f".{os.getpid()}.partial"
            probe.write_bytes(b"\0")
            probe.unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """One process at a time; a killed one lets go by itself. What it left half-written is removed.

        Raises:
            CacheError: the folder cannot be written.
        """
        with _told(self.path):
            lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _ONLY_OWNER)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("another process builds an engine in %s; waiting for it", self.path)
                fcntl.flock(lock, fcntl.LOCK_EX)
            with _told(self.path):
                for left in self._leftovers():
                    left.unlink(missing_ok=True)
            yield
        finally:
            os.close(lock)

    def _leftovers(self) -> list[Path]:
        """Files that were being written, and those whose sidecar was not written any more: nothing reads them."""
        data = [path for path in self.path.iterdir() if _DATA.fullmatch(path.name) and path.is_file()]
        return [*self.path.glob(".*.partial"), *(path for path in data if not self._sidecar(path.name).exists())]

    def _sidecar(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _sealed(self, name: str, about: Mapping[str, object], data: bytes) -> bytes:
        """The only sidecar that is right; comparing whole ones leaves nothing of a stranger's to parse."""
        what = {"name": name, "bytes": len(data), **about}
        seal = hmac.new(self._secret, _PURPOSE + _canonical(what) + b"\n", hashlib.sha256)
        seal.update(data)
        return _canonical({**what, "hmac_sha256": seal.hexdigest()})

    def _key(self) -> bytes:
        path = self.path / _KEY
        if not path.exists():
            with self.lock():
                if not path.exists():
                    _make_key(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            _refuse_strangers(path, os.fstat(descriptor), stat.S_IFREG)
            key = file.read(_KEY_BYTES + 1)
        if len(key) != _KEY_BYTES:
            raise CacheError(f"{path} is no key of this kit; remove {self.path}, and engines are built again")
        return key


def _make_key(path: Path) -> None:
    """Writes the key aside and gives it its name last: O_EXCL and link() refuse where one is, a kill leaves none half-made."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _ONLY_OWNER), "wb") as file:
        file.write(secrets.token_bytes(_KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    os.link(partial, path)
    partial.unlink()


def _refuse_strangers(path: Path, status: os.stat_result, kind: int) -> None:
    if stat.S_IFMT(status.st_mode) != kind:
        raise CacheError(
            f"{path} is a link or something else than expected; remove it, or set EDGELOOP_CACHE to another folder"
        )
    if status.st_uid != os.geteuid():
        raise CacheError(
            f"{path} belongs to user {status.st_uid}, not to {os.geteuid()} who runs this; set EDGELOOP_CACHE to a folder of your own"
        )
    if status.st_mode & 0o077:
        raise CacheError(f"{path} is open to other users, who could have put engines there; remove it, and it is made again")


def _canonical(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"the engine cache {error.filename or path} cannot be used: {error.strerror}; "
            "free some space, or set EDGELOOP_CACHE to a folder that this user may write"
        ) from error
