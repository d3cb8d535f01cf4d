"""Reading image files of unknown origin: a damaged one is told by name, never passed on half grey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.errors import SourceError

MOST_DAMAGED = 0.05  # share of many images that is left out and named; more are no accident
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
_FULL_BITS = 15  # that the brightest pixel of a 16-bit picture needs, or its camera has fewer and the picture is nearly black
_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"


def list_images(folder: Path) -> list[Path]:
    """The image files of a folder, sorted by name.

    Raises:
        SourceError: no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder; name a folder of images ({', '.join(IMAGE_SUFFIXES)})")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir())
    if not found:
        raise SourceError(f"{folder} holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES)}")
    return found


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decodes an image file to uint8 (h, w, 3) BGR.

    Raises:
        SourceError: the file is missing, truncated, or no image.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check the path and its permissions") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> NDArray[np.uint8]:
    """Decodes the bytes of an image called `name`; see `read_image`."""
    if is_truncated_jpeg(data):
        raise SourceError(f"{name} is a truncated JPEG ({len(data)} bytes, no end marker); copy it again or remove it")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data else None
    except cv2.error as error:  # such as a header that claims billions of pixels
        raise SourceError(f"{name} cannot be decoded as an image: {error.err}; remove it") from error
    if image is None:
        raise SourceError(f"{name} cannot be decoded as an image ({len(data)} bytes); copy it again or remove it")
    if image.dtype == np.uint8:
        return np.asarray(image, np.uint8)
    return _eight_bits(image, name)


def _eight_bits(image: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """The upper bits of a 16-bit picture, as OpenCV gives them."""
    remedy = "scale it to 8 bits as your camera's driver does"
    if image.dtype != np.uint16:
        raise SourceError(f"{name} holds {image.dtype} values, which have no fixed white; {remedy}")
    bits = int(image.max()).bit_length()
    if 0 < bits < _FULL_BITS:  # all black is as black in any number of bits
        raise SourceError(f"{name} has 16 bits a value, of which {bits} are in use, and would come out nearly black; {remedy}")
    return np.asarray(image >> 8, np.uint8)


def is_truncated_jpeg(data: bytes) -> bool:
    """Whether a JPEG stops before its end marker; libjpeg would only warn and fill the rest with grey."""
    return data.startswith(_JPEG_START) and _JPEG_END not in data[max(0, data.rfind(_JPEG_SCAN)) :]
