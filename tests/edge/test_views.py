"""What methods see: random crops whose boxes tell where they lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edge.methods.views import RandomView, TwoViews, ViewSpec
from runtime.sources.simulated import Line


def test_views__the_box_says_where_the_view_lies() -> None:
    """A picture whose blue is the column and whose red is the row: a view's corners tell where they came from."""
    image = np.zeros((200, 250, 3), np.uint8)
    image[..., 0], image[..., 2] = np.arange(250)[None], np.arange(200)[:, None]
    view = RandomView(ViewSpec(64, jitter=0, grey=0, blur=0))
    flips = set()
    for seed in range(12):
        shown, box = view(image, np.random.default_rng(seed))
        left, top, right, bottom = (float(value) for value in box)
        flips.add((left > right, top > bottom))
        for row, column in ((8, 8), (56, 20), (32, 50)):
            x = (left + (right - left) * (column + 0.5) / 64) * 250
            y = (top + (bottom - top) * (row + 0.5) / 64) * 200
            assert float(shown[2, row, column]) * 255 == pytest.approx(x - 0.5, abs=3)
            assert float(shown[0, row, column]) * 255 == pytest.approx(y - 0.5, abs=3)
    assert len(flips) == 4


@pytest.mark.parametrize("size", [(2048, 512), (1920, 1080), (512, 2048), (640, 480), (200, 200)])
def test_views__objects_keep_their_proportions_and_crops_differ(size: tuple[int, int]) -> None:
    view, image = RandomView(ViewSpec(32, jitter=0, grey=0, blur=0)), np.zeros((size[1], size[0], 3), np.uint8)
    rng = np.random.default_rng(0)
    boxes = np.array([view(image, rng)[1].numpy() for _ in range(100)])
    extents = np.abs(boxes[:, 2:] - boxes[:, :2]) * size
    ratio = extents[:, 0] / extents[:, 1]
    assert 0.74 < ratio.min() < ratio.max() < 1.35
    largest = min(size[0], size[1] * 4 / 3) * min(size[1], size[0] * 4 / 3)
    assert extents.prod(1).min() > 0.29 * largest
    assert len({tuple(box) for box in boxes.round(3).tolist()}) > 90


def test_views__depend_on_the_generator_alone() -> None:
    views, image = TwoViews(ViewSpec(64)), Line(1, (128, 128)).image(3)
    first = views(image, np.random.default_rng(5))
    np.random.seed(1)  # noqa: NPY002  what other code may do
    torch.manual_seed(1)
    for a, b in zip(first, views(image, np.random.default_rng(5)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not torch.equal(first[0], views(image, np.random.default_rng(6))[0])
    assert first[0].dtype == torch.float32
    assert 0 <= float(first[0].min()) <= float(first[0].max()) <= 1
