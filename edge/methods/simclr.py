"""SimCLR (Chen et al. 2020, arXiv 2002.05709): two views of an image attract, all other images of the batch repel.

The batch is the source of negatives, so accumulating gradients over small batches does not replace a large one;
`edge.large_batch` does.
"""

from __future__ import annotations

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import SimCLRProjectionHead

from edge.methods import Settings
from edge.methods.views import TwoViews, ViewSpec
from edge.processes import several
from edge.trunk import Trunk, pooled

TEMPERATURE = 0.2  # 0.1 of the paper is for batches of 4096; small batches separate better a little warmer
_PROJECTION = (512, 128)


class SimCLR(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        self.trunk = trunk
        self.views = TwoViews(ViewSpec(settings.imgsz, upright=settings.upright))
        self.head = SimCLRProjectionHead(sum(trunk.channels), *_PROJECTION)
        self.criterion = NTXentLoss(temperature=TEMPERATURE, gather_distributed=several())

    def forward(self, first: torch.Tensor, second: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """NT-Xent, equation 1 of the paper, over both views as anchors."""
        loss: torch.Tensor = self.criterion(*self.embed(first, second))
        return loss

    def embed(self, first: torch.Tensor, second: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Projections (b, d) of both views, made in one pass: batch norm then sees the same statistics for both."""
        return self.head(pooled(self.trunk(torch.cat([first, second])))).chunk(2)  # type: ignore[no-any-return]

    def after_step(self, step: int) -> None:
        """Nothing moves by itself."""
