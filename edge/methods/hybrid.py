"""Masked modelling first, then dense agreement, the weights carried over.

Painting needs few images and no choice of views, and agreement makes what it found invariant; the survey of arXiv 2410.07442
found the first better on custom data sets and the second on convolutional networks.
"""

from __future__ import annotations

import torch

from edge.methods import Settings
from edge.methods.dense import Dense
from edge.methods.mae import MaskedModelling
from edge.methods.views import TwoViews, ViewSpec
from edge.trunk import Trunk

FIRST_SHARE = 0.4  # of the steps


class Hybrid(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        self.trunk = trunk
        self.views = TwoViews(ViewSpec(settings.imgsz, upright=settings.upright))
        self.painting, self.agreeing = MaskedModelling(trunk, settings), Dense(trunk, settings)
        self._switch = round(FIRST_SHARE * settings.steps)
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self.step: torch.Tensor

    def forward(self, *views: torch.Tensor) -> torch.Tensor:
        """The loss of the phase; they are of different size."""
        loss: torch.Tensor = self.painting(*views) if int(self.step) < self._switch else self.agreeing(*views)
        return loss

    def after_step(self, step: int) -> None:
        """The phase goes with the number of the step, also after a resume."""
        self.step.fill_(step + 1)
