from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge.pool_light import PoolLight
from runtime.errors import PoolError
from runtime.pool import Pool
from tests.conftest import fill_pool


def relit(light: PoolLight) -> list[np.ndarray]:
    np.random.seed(0)  # noqa: NPY002  what it draws from
    image = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    return [light(image) for _ in range(16)]


def test_pool_light__a_cut_run_goes_on_in_the_light_that_it_began_with(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 6)
    first = relit(PoolLight.kept(tmp_path / "light.json", tmp_path / "pool", None, 0))
    with Pool.create(tmp_path / "pool") as pool:
        for entry in pool.entries()[:5]:
            pool.remove(entry)
    again = relit(PoolLight.kept(tmp_path / "light.json", tmp_path / "pool", None, 0))
    np.testing.assert_array_equal(first, again)
    other = relit(PoolLight.kept(tmp_path / "other.json", tmp_path / "pool", None, 0))
    assert not np.array_equal(first, other)


def test_pool_light__frames_that_are_gone_are_left_out(tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 3)
    with Pool.open(tmp_path / "pool") as pool:
        entries = pool.entries()
        pool.file_of(entries[0]).unlink()
        pool.file_of(entries[1]).write_bytes(b"no JPEG")
    found = np.unique([image.mean() for image in relit(PoolLight.measured(tmp_path / "pool", None, 0))])
    assert len(found) == 2, "the image as it is, and in the light of the frame that is left"
    with pytest.raises(PoolError):
        PoolLight.measured(tmp_path / "nowhere", None, 0)
