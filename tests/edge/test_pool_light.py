from __future__ import annotations

from pathlib import Path

import numpy as np

from edge.pool_light import PoolLight
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
