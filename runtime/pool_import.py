"""Bringing image files into a pool."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import PoolError, SourceError
from runtime.images import MOST_DAMAGED, decode_image
from runtime.pool import Pool, Seen
from runtime.progress import Progress

_SHOWN = 10  # damaged images in a refusal
_LOOKED = 200  # images before a refusal, so that it names what there is to mend


@dataclass(frozen=True, slots=True)
class Added:
    """What became of image files.

    Attributes:
        added: new in the pool.
        known: that were there already.
        damaged: that were left out.
    """

    added: int
    known: int
    damaged: int


def add_image_files(pool: Pool, paths: Sequence[Path], camera: str, began_wall_s: float, apart_s: float) -> Added:
    """Adds image files, `apart_s` seconds apart from `began_wall_s` (Unix time); damaged ones are left out and named on stderr.

    Raises:
        SourceError: more than 5 % are damaged; what was added before stays.
        PoolError: the pool refuses one.
    """
    added = 0
    damaged: list[str] = []
    with Progress("add", len(paths)) as progress:
        for number, path in enumerate(paths):
            try:
                added += add_image_file(pool, path, camera, began_wall_s + number * apart_s)
            except SourceError as error:
                damaged.append(str(error))
            except PoolError as error:
                raise PoolError(f"{error}; {added} of {len(paths)} were added and stay") from error
            looked = number + 1
            if looked >= min(_LOOKED, len(paths)) and len(damaged) > MOST_DAMAGED * len(paths):
                of = "the" if looked == len(paths) else "the first"
                raise SourceError(
                    f"{len(damaged)} of {of} {looked} images are damaged: {'; '.join(damaged[:_SHOWN])}; mend or remove them "
                    "and start again, what was added stays"
                )
            progress.advance(path.name)
    for told in damaged:
        sys.stderr.write(f"left out: {told}\n")
    return Added(added, len(paths) - added - len(damaged), len(damaged))


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
