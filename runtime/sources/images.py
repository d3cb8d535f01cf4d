"""A folder of images, replayed like a camera."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.images import list_images, read_image


class ImagesSource:
    """Replays a folder in the order of its file names.

    Attributes:
        live: False: a folder can wait, so `fps: max` is allowed.
        fps: rate when the configuration names none.
    """

    live = False
    fps: float | None = 10.0

    def __init__(self, path: Path, *, loop: bool = False) -> None:
        """Lists the folder.

        Raises:
            SourceError: no such folder, or no image in it.
        """
        self._paths = list_images(path)
        self._loop = loop

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """Yields each picture; SourceError names the first that cannot be decoded."""
        while True:
            for path in self._paths:
                yield read_image(path)
            if not self._loop:
                return

    def interrupt(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing to release."""
