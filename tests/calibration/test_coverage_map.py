from __future__ import annotations

import numpy as np
import pytest

from calibration.coverage_map import coverage_map


def test_coverage_map__keeps_distances_of_what_lies_in_a_plane() -> None:
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(40, 2)) * (3, 1)
    axes, _ = np.linalg.qr(rng.normal(size=(16, 2)))
    found = coverage_map((plane @ axes.T).astype(np.float32), [4, 7])
    assert found.explained == pytest.approx(1)
    assert [row for row, point in enumerate(found.points) if point[2]] == [4, 7]
    drawn = np.array([point[:2] for point in found.points])
    distance, expected = (np.linalg.norm(points[:, None] - points[None], axis=2) for points in (drawn, plane))
    np.testing.assert_allclose(distance, expected, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 8), (5, 1), (3, 8)])
def test_coverage_map__few_frames_or_all_alike(shape: tuple[int, int]) -> None:
    found = coverage_map(np.ones(shape, np.float32), [0])
    assert [point[:2] for point in found.points] == [(0.0, 0.0)] * shape[0]
    assert found.explained == 0
