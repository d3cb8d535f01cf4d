"""Every n-th frame with its boxes drawn on it, as JPEG files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2

from runtime.draw import annotated
from runtime.errors import SinkError
from runtime.files import write_atomically
from runtime.pipeline import Result


class PicturesSink:
    """Writes `<camera>-<frame>.jpg` into a folder, at most `limit` files in the daemon's life."""

    def __init__(self, path: str, class_names: list[str], every_n: int, limit: int) -> None:
        """Makes the folder.

        Raises:
            SinkError: it cannot be written.
        """
        self._folder, self._names = Path(path), class_names
        self._every_n, self._left = every_n, limit
        self._seen: Counter[str] = Counter()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SinkError(f"{path} cannot be written: {error.strerror}; check `path` of the pictures sink") from error

    def emit(self, result: Result) -> None:
        """Draws the frame if it is its turn.

        Raises:
            SinkError: the disk is full.
        """
        frame = result.frame
        self._seen[frame.camera] += 1
        if (self._seen[frame.camera] - 1) % self._every_n or self._left <= 0:
            return
        _, data = cv2.imencode(".jpg", annotated(frame.image, result.detections, self._names))
        path = self._folder / f"{frame.camera}-{frame.index:06d}.jpg"
        try:
            write_atomically(path, data.tobytes())
        except OSError as error:
            raise SinkError(f"{path} cannot be written: {error.strerror}; free some space") from error
        self._left -= 1

    def close(self) -> None:
        """Nothing to flush."""
