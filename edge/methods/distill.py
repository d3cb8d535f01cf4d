"""Distillation of a larger model on unlabeled frames: what it makes of each place on P3 to P5, without its head.

Two terms on each map: how every channel goes up and down over the cells, after a learnt projection (PKD, Cao et al. 2022, arXiv
2207.02039), and how similar each cell is to all others of its image (relational, as the local loss of LightlyTrain's third
version), which needs no projection and holds between teachers and students of any width. In both each channel counts alike,
whatever its mean and scale: else the mean of a few strong ones, the same everywhere, would be most of what is learnt.
"""

from __future__ import annotations

import torch

from edge.errors import TrainingError
from edge.methods import Settings
from edge.methods.views import RandomView, ViewSpec
from edge.teacher import load_teacher
from edge.trunk import Trunk

TEMPERATURE = 0.07  # of the similarities, as LightlyTrain's
_GRID = 14  # cells a side that are compared: finer maps are averaged, or similarities would fill the memory
_RELATIONAL = 0.3  # weight of the relations: from fresh weights they begin near 3, the channels' distance near 1
_LEAST_DEVIATION = (
    0.01  # of a channel: less is mostly rounding in bfloat16; necks with COCO weights have more on every set here
)


class Distill(torch.nn.Module):
    """See `Method`. Teacher and student look at the same view."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        """Loads the teacher.

        Raises:
            TrainingError: none was named, timm has none of that name, or it does not give as many maps as the trunk.
            CheckpointError: it cannot be read, or is of another model.
            MissingPackageError: it is one of timm, which is not installed.
        """
        super().__init__()
        if settings.teacher is None:
            raise TrainingError("distill needs a teacher; name the weights of a larger model with --teacher")
        self.trunk = trunk
        self.views = RandomView(ViewSpec(settings.imgsz, upright=settings.upright))
        teacher = load_teacher(settings.teacher, settings.teacher_model, settings.imgsz)
        self._teacher = [teacher]  # in a list: no part of our state, nor of what is trained
        if len(trunk.channels) != len(teacher.channels):
            raise TrainingError(
                f"distill compares P3 to P5, but the trunk gives {len(trunk.channels)} map(s); train it with its neck"
            )
        self.projections = torch.nn.ModuleList(
            torch.nn.Conv2d(own, theirs, 1) for own, theirs in zip(trunk.channels, teacher.channels, strict=True)
        )

    def forward(self, first: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """Mean over the maps of the channels' distance and of the relational divergence."""
        teacher = self._teacher[0].to(first.device)
        with torch.no_grad():
            theirs = teacher(first)
        losses = []
        for own, wanted, projection in zip(self.trunk(first), theirs, self.projections, strict=True):
            apart = channel_distance(projection(own), wanted)
            losses.append(apart + _RELATIONAL * relational_divergence(standardised(own), standardised(wanted)))
        return torch.stack(losses).mean()

    def after_step(self, step: int) -> None:
        """Nothing moves by itself."""


def standardised(found: torch.Tensor) -> torch.Tensor:
    """Maps (b, c, h, w), float32, each channel with mean 0 and deviation 1 over all cells of the batch."""
    found = found.float()
    deviation, mean = torch.std_mean(found, dim=(0, 2, 3), correction=0, keepdim=True)
    return (found - mean) / deviation.clamp_min(_LEAST_DEVIATION)


def channel_distance(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """1 less the mean over the channels of Pearson's correlation, 0 to 2; maps (b, c, h, w) of one shape."""
    return (standardised(own) - standardised(wanted)).square().mean() / 2


def relational_divergence(own: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of each cell's similarities to the others of its image; maps (b, c, h, w), any c."""
    similar = [similarities(found) for found in (own, wanted)]
    return torch.nn.functional.kl_div(similar[0], similar[1], log_target=True, reduction="none").sum(-1).mean()


def similarities(found: torch.Tensor) -> torch.Tensor:
    """Log-softmax over the other cells, (b, n, n - 1)."""
    if found.shape[2] > _GRID:
        found = torch.nn.functional.adaptive_avg_pool2d(found, _GRID)
    cells = torch.nn.functional.normalize(found.flatten(2), dim=1)
    all_pairs = torch.einsum("bcn,bcm->bnm", cells, cells) / TEMPERATURE
    count = all_pairs.shape[1]
    others = ~torch.eye(count, dtype=torch.bool, device=found.device)
    return all_pairs[:, others].view(len(found), count, count - 1).log_softmax(-1)
