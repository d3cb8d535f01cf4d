"""Jigsaw puzzles (Noroozi and Favaro 2016, arXiv 1603.09246): nine tiles are shuffled, which shuffle was it? A baseline.

As in the paper each tile is looked at by itself, so that only what it shows can tell where it belongs, and tiles are cut with
gaps, so that edges which go on in the next one do not. Tiles become as large as the network's stride allows.
"""

from __future__ import annotations

import torch

from edge.methods import Settings
from edge.methods.views import RandomView, ViewSpec
from edge.trunk import Trunk, pooled
from runtime.preprocess import STRIDE

SIDE = 3
_SHUFFLES = 64
_CANDIDATES = 1000
_GAP = 0.15  # of a tile's side, left out at random around what is shown
_TILE, _HIDDEN = 128, 512  # widths of the head: for each tile, and for all of them side by side


class Jigsaw(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        self.trunk = trunk
        self.views = RandomView(ViewSpec(settings.imgsz, upright=settings.upright))
        self.tile_head = torch.nn.Sequential(torch.nn.Linear(sum(trunk.channels), _TILE), torch.nn.ReLU())
        self.head = torch.nn.Sequential(
            torch.nn.Linear(SIDE * SIDE * _TILE, _HIDDEN), torch.nn.ReLU(), torch.nn.Linear(_HIDDEN, _SHUFFLES)
        )
        self.register_buffer("shuffles", distant_shuffles(_SHUFFLES))
        self.shuffles: torch.Tensor

    def forward(self, images: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the shuffles; ln 64 = 4.16 is chance."""
        wanted = torch.randint(len(self.shuffles), (len(images),), device=images.device)
        tiles = shuffled_tiles(images, self.shuffles[wanted])
        found = self.tile_head(pooled(self.trunk(tiles.flatten(0, 1)))).view(len(images), -1)
        return torch.nn.functional.cross_entropy(self.head(found), wanted)

    def after_step(self, step: int) -> None:
        """Nothing moves by itself."""


def distant_shuffles(count: int) -> torch.Tensor:
    """Orders of nine tiles that differ much from each other (greedy, largest Hamming distance): long (count, 9)."""
    generator = torch.Generator().manual_seed(0)
    candidates = torch.stack([torch.randperm(SIDE * SIDE, generator=generator) for _ in range(_CANDIDATES)])
    chosen = [0]
    distance = (candidates != candidates[0]).sum(1)
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (candidates != candidates[chosen[-1]]).sum(1))
    return candidates[chosen]


def shuffled_tiles(images: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Nine tiles an image, tile `orders[:, i]` at place i, each cropped at random and enlarged again.

    Args:
        images: float32 (b, 3, side, side).
        orders: long (b, 9); tiles are numbered row by row.

    Returns:
        float32 (b, 9, 3, t, t), t a multiple of the network's stride.
    """
    side = images.shape[2] // SIDE
    size = max(STRIDE, side // STRIDE * STRIDE)
    gap = int(_GAP * side)
    tiles = []
    for row in range(SIDE):
        for column in range(SIDE):
            top, left = (int(torch.randint(gap + 1, ())) for _ in range(2))
            y, x = row * side + top, column * side + left
            part = images[:, :, y : y + side - gap, x : x + side - gap]
            tiles.append(torch.nn.functional.interpolate(part, (size, size), mode="bilinear", align_corners=False))
    stacked = torch.stack(tiles, dim=1)
    return stacked.gather(1, orders[:, :, None, None, None].expand_as(stacked))
