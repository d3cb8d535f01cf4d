"""Bringing image files into a pool."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import SourceError
from runtime.images import decode_image
from runtime.pool import Pool, Seen


def add_image_file(pool: Pool, path: Path, camera: str, captured_wall_s: float) -> bool:
    """Adds one image file; a JPEG keeps its bytes, anything else is encoded. False when the pool held it already.

    Raises:
        SourceError: the file cannot be read or is damaged.
        PoolError: the pool refuses it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
    image = decode_image(data, str(path))
    seen = Seen(camera, captured_wall_s, "import")
    if data.startswith(b"\xff\xd8"):
        return pool.add_jpeg(data, (image.shape[1], image.shape[0]), seen) is not None
    return pool.add(image, seen) is not None
