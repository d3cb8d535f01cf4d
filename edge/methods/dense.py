"""Dense and global agreement on P3 to P5, without negatives: VICRegL (Bardes et al. 2022, arXiv 2210.01571), for a detector.

A detector reads cells, not whole images. So the cells of two views that show the same place must agree (as PixPro's,
arXiv 2011.10043, positives are found by where a cell lies), on each map that the head looks at; backbone and neck are
trained by one loss. Variance and covariance keep the cells from all saying the same. VICRegL's other pairs, of cells whose
features are alike, are left out.

An anchor ties the maps to those of the weights that the run started from, which a head was trained on: it holds what they know
while they learn the scene (as continual self-supervision does, CaSSLe 2112.04215, PFR 2112.15022).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead

from edge.methods import Settings
from edge.methods.views import TwoViews, ViewSpec
from edge.processes import several
from edge.trunk import Trunk, pooled

ALPHA = 0.5  # weight of the whole image's loss; the paper has 0.75 and 0.9, for a classifier's last map
_WIDTH = 512
_CELLS = 32  # of each image and map
_NEAR = 0.71  # cells of a map lie at the same place when their centres are no further apart than half a cell's diagonal


class Dense(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        self.trunk = trunk
        self.views = TwoViews(ViewSpec(settings.imgsz, upright=settings.upright))
        self.head = VICRegProjectionHead(sum(trunk.channels), 2 * _WIDTH, 2 * _WIDTH)
        self.cell_heads = torch.nn.ModuleList(
            VICRegProjectionHead(each, _WIDTH, _WIDTH, num_layers=2) for each in trunk.channels
        )
        self.criterion = VICRegLoss(gather_distributed=several())
        self._anchor_weight = settings.anchor
        # In a list: no part of our state, nor of what is trained.
        self._start = [copy.deepcopy(trunk).eval().requires_grad_(False)] if settings.anchor else []
        self.cell_criterion = VICRegLoss()  # how many cells have partners differs from process to process

    def forward(
        self, first: torch.Tensor, second: torch.Tensor, first_box: torch.Tensor, second_box: torch.Tensor
    ) -> torch.Tensor:
        """The loss of both views.

        Args:
            first: views, float32 (b, 3, h, w).
            second: the same.
            first_box: where they lie in the frame, float32 (b, 4), see `RandomView`.
            second_box: the same.
        """
        images = torch.cat([first, second])
        maps = self.trunk(images)
        whole = self.criterion(*self.head(pooled(maps)).chunk(2))
        local = [self._agreement(head, found, first_box, second_box) for head, found in zip(self.cell_heads, maps, strict=True)]
        loss: torch.Tensor = ALPHA * whole + (1 - ALPHA) * torch.stack(local).mean()
        for start in self._start:
            with torch.no_grad():
                held = start.to(images.device)(images)
            loss = loss + self._anchor_weight * drift(maps, held)
        return loss

    def _agreement(
        self, head: torch.nn.Module, maps: torch.Tensor, first_box: torch.Tensor, second_box: torch.Tensor
    ) -> torch.Tensor:
        first, second = maps.chunk(2)
        pairs = same_places(first_box, second_box, (first.shape[2], first.shape[3]), _CELLS)
        if len(pairs[0]) < 2:  # no two crops overlap
            return first.new_zeros(())
        image, a, b = pairs
        cells = torch.cat([first.flatten(2)[image, :, a], second.flatten(2)[image, :, b]])
        loss: torch.Tensor = self.cell_criterion(*head(cells).chunk(2))
        return loss

    def after_step(self, step: int) -> None:
        """Nothing moves by itself."""


def drift(maps: Sequence[torch.Tensor], held: Sequence[torch.Tensor]) -> torch.Tensor:
    """How far maps (b, c, h, w) are from others: squared error over the others' squares, mean of the maps; 0 for the same."""
    apart = [(own - other).square().mean() / other.square().mean() for own, other in zip(maps, held, strict=True)]
    return torch.stack(apart).mean()


def same_places(
    first_box: torch.Tensor, second_box: torch.Tensor, grid: tuple[int, int], most: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Cells of two views that show the same place.

    Args:
        first_box: where the first views lie in the frame, float32 (b, 4), see `RandomView`.
        second_box: the same of the second.
        grid: rows and columns of the map.
        most: cells of each image that are drawn; those without a partner are left out.

    Returns:
        Three long tensors of one length: image, cell of the first view, cell of the second (row · columns + column).
    """
    rows, columns = grid
    here, there = centres(first_box, grid), centres(second_box, grid)
    drawn = torch.rand(here.shape[:2], device=here.device).topk(min(most, rows * columns), dim=1).indices
    chosen = here.gather(1, drawn[..., None].expand(-1, -1, 2))
    cell = torch.stack([(box[:, [2, 3]] - box[:, [0, 1]]).abs() for box in (first_box, second_box)]).amax(0)
    cell = cell / torch.tensor([columns, rows], device=cell.device)
    apart = (chosen[:, :, None] - there[:, None]) / cell[:, None, None]
    distance, nearest = apart.square().sum(-1).min(dim=2)
    image, position = torch.nonzero(distance <= _NEAR**2, as_tuple=True)
    return image, drawn[image, position], nearest[image, position]


def centres(box: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Centres of a view's cells in shares of the frame: (b, 4) → (b, rows · columns, 2) as x, y, row by row."""
    rows, columns = grid
    across = (torch.arange(columns, device=box.device) + 0.5) / columns
    down = (torch.arange(rows, device=box.device) + 0.5) / rows
    x = box[:, 0:1] + (box[:, 2:3] - box[:, 0:1]) * across
    y = box[:, 1:2] + (box[:, 3:4] - box[:, 1:2]) * down
    return torch.stack([x[:, None].expand(-1, rows, -1), y[..., None].expand(-1, -1, columns)], dim=-1).flatten(1, 2)
