"""Rotation prediction (Gidaris et al. 2018, arXiv 1803.07728): which of four ways up is it? A baseline.

Of no use, or harm, where scenes have no up: boards, fruit and roads seen from above.
"""

from __future__ import annotations

import torch

from edge.methods import Settings
from edge.methods.views import RandomView, ViewSpec
from edge.trunk import Trunk, pooled


class Rotation(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        self.trunk = trunk
        self.views = RandomView(ViewSpec(settings.imgsz, upright=True))  # a flipped scene would answer for a turned one
        self.head = torch.nn.Linear(sum(trunk.channels), 4)

    def forward(self, first: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """Cross-entropy over all four ways up of the first view; ln 4 = 1.39 is chance."""
        turned = torch.cat([torch.rot90(first, turns, (2, 3)) for turns in range(4)])
        wanted = torch.arange(4, device=first.device).repeat_interleave(len(first))
        return torch.nn.functional.cross_entropy(self.head(pooled(self.trunk(turned))), wanted)

    def after_step(self, step: int) -> None:
        """Nothing moves by itself."""
