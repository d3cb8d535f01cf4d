"""VICReg (Bardes et al. 2021, arXiv 2105.04906): two views agree, every dimension varies, no two dimensions say the same.

No image repels another, so small batches are enough.
"""

from __future__ import annotations

import torch
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead

from edge.methods import Settings
from edge.methods.views import TwoViews, ViewSpec
from edge.processes import several
from edge.trunk import Trunk, pooled

_WIDTH = 1024  # 8192 in the paper, for a ResNet-50


class VICReg(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        self.trunk = trunk
        self.views = TwoViews(ViewSpec(settings.imgsz, upright=settings.upright))
        self.head = VICRegProjectionHead(sum(trunk.channels), _WIDTH, _WIDTH)
        self.criterion = VICRegLoss(gather_distributed=several())

    def forward(self, first: torch.Tensor, second: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """Equation 6 of the paper with its weights 25, 25 and 1."""
        loss: torch.Tensor = self.criterion(*self.embed(first, second))
        return loss

    def embed(self, first: torch.Tensor, second: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Expanded features (b, d) of both views."""
        return self.head(pooled(self.trunk(torch.cat([first, second])))).chunk(2)  # type: ignore[no-any-return]

    def after_step(self, step: int) -> None:
        """Nothing moves by itself."""
