"""Pool: the frames worth keeping, as JPEG files and an SQLite index, within a hard byte quota.

    pool/
      index.sqlite          WAL; one row a frame
      frames/3f/3f9c….jpg   named by the SHA-256 of its bytes
      writer.lock           held by the one process that adds or removes

A frame's file is complete before its row exists, and its row is gone before its file is removed. So a kill at
any instant leaves at most files without a row, which the next writer removes on opening.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import PoolError

DEFAULT_QUOTA_BYTES = 2 << 30
_OURS = re.compile(r"[0-9a-f]{64}\.(jpg|partial)")
JPEG_QUALITY = 95  # visually lossless; artefacts of lower settings show up as fine texture to a detector

_SCHEMA = """
CREATE TABLE IF NOT EXISTS frame (
    sha256 TEXT PRIMARY KEY,
    camera TEXT NOT NULL,
    captured_wall_s REAL NOT NULL,
    epoch INTEGER NOT NULL,
    reason TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    embedding BLOB,
    detections INTEGER,
    max_confidence REAL,
    bundle TEXT,
    privacy TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS frame_time ON frame (captured_wall_s);
"""
_COLUMNS = (
    "sha256, camera, captured_wall_s, epoch, reason, bytes, width, height, "
    "embedding, detections, max_confidence, bundle, privacy"
)


@dataclass(frozen=True, slots=True)
class PoolEntry:
    """One row of the index.

    Attributes:
        sha256: of the JPEG's bytes; also its name.
        camera: which camera.
        captured_wall_s: Unix time.
        epoch: stream epoch of the camera.
        reason: why it was kept.
        bytes: size of the JPEG.
        size_wh: width and height in pixels.
        embedding: float16 (d,) of the model that saw it, or None.
        detections: how many boxes the model gave, or None.
        max_confidence: of them, or None.
        bundle: digest of that model, or None.
        privacy: `raw`; later `blurred`.
    """

    sha256: str
    camera: str
    captured_wall_s: float
    epoch: int
    reason: str
    bytes: int
    size_wh: tuple[int, int]
    embedding: NDArray[np.float16] | None = None
    detections: int | None = None
    max_confidence: float | None = None
    bundle: str | None = None
    privacy: str = "raw"


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a frame when it is added; `PoolEntry` without what the pool finds out itself."""

    camera: str
    captured_wall_s: float
    reason: str
    epoch: int = 0
    embedding: NDArray[np.float32] | None = None
    detections: int | None = None
    max_confidence: float | None = None
    bundle: str | None = None


class Pool:
    """An opened pool. Close it, or use it in a `with`.

    One process writes at a time; any number read beside it.
    """

    def __init__(self, path: Path, db: sqlite3.Connection, lock: IO[bytes] | None, quota_bytes: int, *, evict: bool) -> None:
        """Use `Pool.create` or `Pool.open`."""
        self._evict = evict
        self.path = path
        self.quota_bytes = quota_bytes
        self._db = db
        self._lock = lock
        self._used_bytes = self._sum_bytes()

    @classmethod
    def create(cls, path: str | Path, quota_bytes: int = DEFAULT_QUOTA_BYTES, *, evict: bool = True) -> Pool:
        """Opens a pool for writing, making it if need be, and removes what a killed writer left.

        At the quota the oldest frames make room, or, without `evict`, adding is refused.

        Raises:
            PoolError: the folder cannot be written, or another process writes.
        """
        folder = Path(path)
        with _as_pool_error(folder):
            (folder / "frames").mkdir(parents=True, exist_ok=True)
            if not (folder / "index.sqlite").exists() and any((folder / "frames").iterdir()):
                raise PoolError(
                    f"{folder / 'frames'} holds files but {folder} has no index.sqlite; choose another folder for the pool"
                )
            lock = (folder / "writer.lock").open("ab")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.close()
                raise PoolError(f"pool {folder} is being written by another process; stop that one first") from error
            db = sqlite3.connect(folder / "index.sqlite", check_same_thread=False, isolation_level=None)
            try:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=NORMAL")
                db.executescript(_SCHEMA)
                pool = cls(folder, db, lock, quota_bytes, evict=evict)
                pool._recover()
            except BaseException:
                db.close()
                lock.close()
                raise
        return pool

    @classmethod
    def open(cls, path: str | Path) -> Pool:
        """Opens an existing pool for reading.

        Raises:
            PoolError: there is none, or its index is damaged.
        """
        folder = Path(path)
        if not (folder / "index.sqlite").is_file():
            named = "POOL" if folder.exists() else folder
            images = folder if folder.is_dir() else "IMAGES"
            raise PoolError(f"{folder} is no pool: it has no index.sqlite; fill one with: edge pool add {named} {images}")
        with _as_pool_error(folder):
            db = _reader(folder / "index.sqlite")
            try:
                db.execute("PRAGMA query_only=1")
                return cls(folder, db, None, 0, evict=False)
            except BaseException:
                db.close()
                raise

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the index and the writer's lock."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    def __len__(self) -> int:
        with _as_pool_error(self.path):
            return int(self._db.execute("SELECT count(*) FROM frame").fetchone()[0])

    @property
    def used_bytes(self) -> int:
        """Bytes of all JPEG files."""
        return self._used_bytes

    def add(self, image: NDArray[np.uint8], seen: Seen) -> PoolEntry | None:
        """Keeps a BGR image (h, w, 3); the oldest frames make room. Returns None when the pool holds it already.

        Raises:
            PoolError: the disk is full or unwritable, or the frame alone is over the quota.
        """
        ok, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not ok:
            raise PoolError(f"an image of shape {image.shape} cannot be encoded as JPEG; expected uint8 BGR")
        return self.add_jpeg(encoded.tobytes(), (image.shape[1], image.shape[0]), seen)

    def add_jpeg(self, data: bytes, size_wh: tuple[int, int], seen: Seen) -> PoolEntry | None:
        """Like `add`, for an image that is a JPEG already: its bytes are kept as they are."""
        if len(data) > self.quota_bytes:
            raise PoolError(
                f"a frame of {len(data)} bytes does not fit into pool {self.path} with a quota of {self.quota_bytes}; raise the quota"
            )
        digest = hashlib.sha256(data).hexdigest()
        with _as_pool_error(self.path):
            if self._db.execute("SELECT 1 FROM frame WHERE sha256 = ?", (digest,)).fetchone():
                return None
        embedding = None if seen.embedding is None else seen.embedding.astype(np.float16)
        entry = PoolEntry(
            digest, seen.camera, seen.captured_wall_s, seen.epoch, seen.reason, len(data), size_wh,
            embedding, seen.detections, seen.max_confidence, seen.bundle,
        )  # fmt: skip
        with _as_pool_error(self.path):
            self._make_room(len(data))
            self._write(entry, data)
        self._used_bytes += len(data)
        return entry

    def entries(self, until_s: float | None = None, *, with_embeddings: bool = True) -> list[PoolEntry]:
        """All rows captured up to the Unix time `until_s` (None: all), oldest first.

        Embeddings are the most of a row: a large pool is listed in a tenth of the memory without them.
        """
        limit = float("inf") if until_s is None else until_s
        columns = _COLUMNS if with_embeddings else _COLUMNS.replace("embedding", "NULL")
        query = f"SELECT {columns} FROM frame WHERE captured_wall_s <= ? ORDER BY captured_wall_s, sha256"
        with _as_pool_error(self.path):
            rows = self._db.execute(query, (limit,)).fetchall()
        return [_entry_from_row(row) for row in rows]

    def read_jpeg(self, entry: PoolEntry) -> bytes:
        """The frame's bytes, checked against its name.

        Raises:
            PoolError: the file is missing, truncated or altered.
        """
        path = self.file_of(entry)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise PoolError(
                f"{path} cannot be read ({error.strerror}); drop such rows with: edge pool check {self.path} --repair"
            ) from error
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise PoolError(
                f"{path} is damaged: {len(data)} bytes where {entry.bytes} were written, or altered; "
                f"remove such frames with: edge pool check {self.path} --repair"
            )
        return data

    def read(self, entry: PoolEntry) -> NDArray[np.uint8]:
        """The frame as uint8 (h, w, 3) BGR. Raises like `read_jpeg`."""
        image = cv2.imdecode(np.frombuffer(self.read_jpeg(entry), np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise PoolError(f"{self.file_of(entry)} is no JPEG; remove it with: edge pool check {self.path} --repair")
        return np.asarray(image, np.uint8)

    def damaged(self) -> Iterator[tuple[PoolEntry, PoolError]]:
        """Every row whose file is missing, truncated or altered, with the reason."""
        for entry in self.entries():
            try:
                self.read(entry)
            except PoolError as error:
                yield entry, error

    def remove(self, entry: PoolEntry) -> None:
        """Forgets a frame and deletes its file."""
        with _as_pool_error(self.path):
            self._db.execute("DELETE FROM frame WHERE sha256 = ?", (entry.sha256,))
            self.file_of(entry).unlink(missing_ok=True)
        self._used_bytes -= entry.bytes

    def file_of(self, entry: PoolEntry) -> Path:
        """Where a frame's JPEG lies; it may be evicted at any time."""
        digest = entry.sha256
        return self.path / "frames" / digest[:2] / f"{digest}.jpg"

    def _write(self, entry: PoolEntry, data: bytes) -> None:
        path = self.file_of(entry)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            self._db.execute(f"INSERT INTO frame ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)", _row_from_entry(entry))
        except BaseException:
            partial.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise

    def _make_room(self, needed: int) -> None:
        if not self._evict and self._used_bytes + needed > self.quota_bytes:
            raise PoolError(f"pool {self.path} is full ({self._used_bytes} of {self.quota_bytes} bytes); raise --quota-mb")
        while self._used_bytes + needed > self.quota_bytes:
            row = self._db.execute(f"SELECT {_COLUMNS} FROM frame ORDER BY captured_wall_s, sha256 LIMIT 1").fetchone()
            self.remove(_entry_from_row(row))

    def _sum_bytes(self) -> int:
        with _as_pool_error(self.path):
            return int(self._db.execute("SELECT coalesce(sum(bytes), 0) FROM frame").fetchone()[0])

    def _recover(self) -> None:
        """Brings index and files to agree after a kill; a row without its file cannot come from one, but is dropped too."""
        known = {row[0] for row in self._db.execute("SELECT sha256 FROM frame")}
        found = set()
        for path in (self.path / "frames").glob("*/*"):
            if path.suffix == ".jpg" and path.stem in known:
                found.add(path.stem)
            elif _OURS.fullmatch(path.name):  # whatever else lies there is not ours to remove
                path.unlink()
        self._db.executemany("DELETE FROM frame WHERE sha256 = ?", [(digest,) for digest in known - found])
        self._used_bytes = self._sum_bytes()


def _reader(index: Path) -> sqlite3.Connection:
    """To read beside a writer SQLite writes files of its own; where nobody can, nobody does, and the index is as it is."""
    alone = not os.access(index.parent, os.W_OK) and not index.with_name(f"{index.name}-wal").exists()
    address = f"{index.absolute().as_uri()}?mode=ro&immutable=1" if alone else index.absolute().as_uri()
    return sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None)


@contextlib.contextmanager
def _as_pool_error(path: Path) -> Iterator[None]:
    """Turns what the disk and SQLite say into one sentence with the remedy."""
    try:
        yield
    except OSError as error:
        raise PoolError(
            f"pool {path} cannot be used: {error.strerror}; free some space, or make the folder writable"
        ) from error
    except sqlite3.DatabaseError as error:
        raise PoolError(
            f"pool {path} cannot be used: its index.sqlite says '{error}'; "
            "check free space and permissions, or restore the index from a copy"
        ) from error


def _entry_from_row(row: tuple[object, ...]) -> PoolEntry:
    sha256, camera, wall, epoch, reason, size, width, height, embedding, detections, confidence, bundle, privacy = row
    vector = np.frombuffer(embedding, np.float16) if isinstance(embedding, bytes) else None
    return PoolEntry(
        str(sha256), str(camera), float(wall), int(epoch), str(reason), int(size), (int(width), int(height)),  # type: ignore[call-overload,arg-type]
        vector, detections, confidence, bundle, str(privacy),  # type: ignore[arg-type]
    )  # fmt: skip


def _row_from_entry(entry: PoolEntry) -> tuple[object, ...]:
    embedding = None if entry.embedding is None else entry.embedding.tobytes()
    return (
        entry.sha256, entry.camera, entry.captured_wall_s, entry.epoch, entry.reason, entry.bytes, *entry.size_wh,
        embedding, entry.detections, entry.max_confidence, entry.bundle, entry.privacy,
    )  # fmt: skip
