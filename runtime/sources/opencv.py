"""Video files, V4L2 devices and RTSP streams through OpenCV."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import SourceError
from runtime.sources.uri import is_live, redacted

log = logging.getLogger(__name__)

_WHOLE = 0.98  # share of the announced frames; containers round
_OPEN_TIMEOUT_MS = 10_000  # a dead camera must not hold its thread for OpenCV's 30 s
_READ_TIMEOUT_MS = 10_000


class OpenCVSource:
    """A file, `/dev/videoN` or a stream URL.

    Attributes:
        live: True for devices and streams: frames that nobody takes are gone.
        fps: the file's own rate, None where unknown.
    """

    fps: float | None

    def __init__(self, uri: str, *, loop: bool = False) -> None:
        """Opens the stream.

        Raises:
            SourceError: no such file, or nothing in it that OpenCV can decode.
        """
        self.live = is_live(uri)
        self._name = redacted(uri)
        self._uri, self._loop = uri, loop
        if not self.live and not Path(uri).is_file():
            raise SourceError(f"no such video file: {uri}; check `uri` of the camera")
        cv2.utils.logging.setLogLevel(
            cv2.utils.logging.LOG_LEVEL_SILENT
        )  # OpenCV's own complaints repeat ours with its source lines
        self._capture = self._open()
        rate = float(self._capture.get(cv2.CAP_PROP_FPS))
        self.fps = rate if not self.live and 0 < rate < 1000 else None

    def images(self) -> Iterator[NDArray[np.uint8]]:
        """Yields decoded pictures until the file ends or the stream breaks."""
        read = 0
        while True:
            ok, image = self._capture.read()
            if ok:
                read += 1
                yield np.asarray(image, np.uint8)
            elif read == 0 and not self.live:
                raise SourceError(f"{self._name} holds no frame that can be decoded; check the file or its codec")
            elif self._loop and not self.live:
                self._capture.release()
                self._capture, read = self._open(), 0
            else:
                self._tell_if_short(read)
                return

    def _tell_if_short(self, read: int) -> None:
        expected = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if not self.live and read < _WHOLE * expected:
            log.warning("%s ended after %d of %d frames; it is truncated or damaged, copy it again", self._name, read, expected)

    def close(self) -> None:
        """Releases the device or the connection."""
        self._capture.release()

    def _open(self) -> cv2.VideoCapture:
        if self._uri.startswith("/dev/"):
            capture = cv2.VideoCapture(self._uri, cv2.CAP_V4L2)
        else:
            timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS]
            capture = cv2.VideoCapture(self._uri, cv2.CAP_FFMPEG, timeouts)
        if not capture.isOpened():
            raise SourceError(
                f"{self._name} cannot be opened as video; check that it plays elsewhere and, for a stream, host and password"
            )
        return capture
