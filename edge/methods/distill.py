"""Distillation of a larger model on unlabeled frames: what it makes of each place on P3 to P5, without its head.

Two terms on each map: the direction of every cell's features, after a learnt projection, and how similar each cell is to
all others of its image (relational, as the local loss of LightlyTrain's third version), which needs no projection and holds
between teachers and students of any width.
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
        """Mean over the maps of the cosine distance and of the relational divergence."""
        teacher = self._teacher[0].to(first.device)
        with torch.no_grad():
            theirs = teacher(first)
        losses = []
        for own, wanted, projection in zip(self.trunk(first), theirs, self.projections, strict=True):
            cosine = torch.nn.functional.cosine_similarity(projection(own), wanted, dim=1)
            losses.append(1 - cosine.mean() + relational_divergence(own, wanted))
        return torch.stack(losses).mean()

    def after_step(self, step: int) -> None:
        """Nothing moves by itself."""


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
