"""Jigsaw puzzles (Noroozi and Favaro 2016, arXiv 1603.09246): nine tiles are shuffled, which shuffle was it? A baseline.

Tiles are shuffled in the picture and one pass looks at all of them, so that it is told apart at no more than a picture's
cost; the paper looks at each tile by itself, and leaves gaps so that edges do not give the answer away, as is done here.
"""

from __future__ import annotations

import torch

from edge.methods import Settings
from edge.methods.views import TwoViews, ViewSpec
from edge.trunk import Trunk, pooled

SIDE = 3
_SHUFFLES = 64
_CANDIDATES = 1000
_GAP = 0.15  # of a tile's side, left out at random around what is shown


class Jigsaw(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        self.trunk = trunk
        self.views = TwoViews(ViewSpec(settings.imgsz, upright=settings.upright))
        self.head = torch.nn.Linear(sum(trunk.channels), _SHUFFLES)
        self.register_buffer("shuffles", distant_shuffles(_SHUFFLES))
        self.shuffles: torch.Tensor

    def forward(self, first: torch.Tensor, second: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over the shuffles of both views; ln 64 = 4.16 is chance."""
        images = torch.cat([first, second])
        wanted = torch.randint(len(self.shuffles), (len(images),), device=images.device)
        shuffled = shuffle_tiles(images, self.shuffles[wanted])
        return torch.nn.functional.cross_entropy(self.head(pooled(self.trunk(shuffled))), wanted)

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


def shuffle_tiles(images: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """Images (b, 3, h, w) with tile `orders[:, i]` at place i, each cropped at random and enlarged again; same shape."""
    side = images.shape[2] // SIDE
    tiles = [images[:, :, row * side : (row + 1) * side, column * side : (column + 1) * side]
             for row in range(SIDE) for column in range(SIDE)]  # fmt: skip
    gap = int(_GAP * side)
    cropped = []
    for tile in tiles:
        top, left = (int(torch.randint(gap + 1, ())) for _ in range(2))
        part = tile[:, :, top : top + side - gap, left : left + side - gap]
        cropped.append(torch.nn.functional.interpolate(part, (side, side), mode="bilinear", align_corners=False))
    stacked = torch.stack(cropped, dim=1)
    placed = stacked.gather(1, orders[:, :, None, None, None].expand_as(stacked))
    rows = [torch.cat(list(placed[:, row * SIDE : (row + 1) * SIDE].unbind(1)), dim=3) for row in range(SIDE)]
    whole = torch.cat(rows, dim=2)
    return torch.nn.functional.interpolate(whole, images.shape[2:], mode="bilinear", align_corners=False)
