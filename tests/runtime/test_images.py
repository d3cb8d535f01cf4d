"""Pictures of all kinds, as they come from cameras, phones and archives."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from runtime.errors import SourceError
from runtime.images import list_images, read_image

COLOUR = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


KINDS = [(suffix, kind) for suffix in ("png", "bmp", "tif", "tiff", "webp", "jpg") for kind in ("colour", "grey", "alpha")]


@pytest.mark.parametrize(("suffix", "kind"), KINDS[:-1], ids=map("-".join, KINDS[:-1]))  # JPEG has no alpha
def test_read_image__three_channels_whatever_it_was(tmp_path: Path, suffix: str, kind: str) -> None:
    alpha = np.dstack([COLOUR, np.full(COLOUR.shape[:2], 255, np.uint8)])
    image = {"colour": COLOUR, "grey": COLOUR[..., 0], "alpha": alpha}[kind]
    path = tmp_path / f"a.{suffix}"
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_WEBP_QUALITY, 101])
    expected = np.repeat(image[..., None], 3, axis=2) if kind == "grey" else COLOUR
    found = read_image(path)
    assert found.shape == (40, 60, 3)
    assert found.dtype == np.uint8
    if suffix != "jpg":
        assert np.array_equal(found, expected)
    assert list_images(tmp_path) == [path]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_read_image__sixteen_bits_give_the_upper_eight(tmp_path: Path, suffix: str, channels: int) -> None:
    deep = COLOUR[..., :channels].astype(np.uint16) * 256 + 77
    assert cv2.imwrite(str(tmp_path / f"a.{suffix}"), deep)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}"), np.broadcast_to(COLOUR[..., :channels], COLOUR.shape))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_read_image__a_camera_with_fewer_bits_would_be_nearly_black(tmp_path: Path, bits: int) -> None:
    deep = np.linspace(0, 2**bits - 1, 2400).reshape(40, 60).astype(np.uint16)
    assert cv2.imwrite(str(tmp_path / "a.png"), deep)
    with pytest.raises(SourceError, match=f"has 16 bits a value, of which {bits} are in use, .* scale it to 8 bits"):
        read_image(tmp_path / "a.png")


def test_read_image__numbers_without_a_white_are_refused(tmp_path: Path) -> None:
    assert cv2.imwrite(str(tmp_path / "a.tiff"), np.random.default_rng(0).random((40, 60, 3)).astype(np.float32))
    with pytest.raises(SourceError, match="holds float32 values, which have no fixed white"):
        read_image(tmp_path / "a.tiff")


def test_list_images__a_folder_called_like_a_picture_is_none(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "a.jpg").write_bytes(b"")
    assert list_images(tmp_path) == [tmp_path / "a.jpg"]
