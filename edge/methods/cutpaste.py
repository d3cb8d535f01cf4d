"""Copy-paste localization: pieces of other frames are pasted in, and the detector learns to find them; neck and head learn too.

Instance localization (InsLoc, Yang et al. 2021, arXiv 2102.08318) with the detector's own boxes and loss in the place of its
contrastive head; pieces that do not belong are also what CutPaste (Li et al. 2021, arXiv 2104.04015) learns defects from. What
is kept is at most everything but the head's classes, which pasted pieces know nothing of.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from edge.errors import TrainingError
from edge.methods import Settings
from edge.methods.views import TwoViews, ViewSpec
from edge.processes import loss_of_found, world_size
from edge.trunk import Trunk

_LIGHT = 0.25  # far weaker than agreement needs: colour tells objects apart
_MOST = 12  # pieces in a frame; those that would cover another are left out
_SIDES = (0.04, 0.4)  # of a piece, as shares of the view
_RATIO = 2.5  # of its sides, at most
_ZOOM = 2.0  # a piece is shown at most so much larger or smaller
_CONTRAST = 0.06  # mean difference from what it covers, 0 to 1; what nobody could see is not asked for


class CutPaste(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        if len(trunk.channels) == 1:
            raise TrainingError("cutpaste trains neck and head as well; give --part neck or --part localizer")
        if settings.batch < 2 * world_size():
            raise TrainingError("cutpaste pastes pieces of other images, two in each process at least; raise --batch")
        self.trunk = trunk
        self.head: Any = trunk.detector.model[-1]
        self.views = TwoViews(ViewSpec(settings.imgsz, jitter=_LIGHT, grey=0.0, blur=0.1, upright=settings.upright))

    def forward(self, first: torch.Tensor, second: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """The detector's loss on the first views with pieces of other images' second views in them."""
        images, row, boxes = pasted(first.float(), second.float())  # mixed precision rounds what it hands over
        found = self.head(self.trunk(images))
        batch = {"img": images, "batch_idx": row, "bboxes": boxes, "cls": torch.zeros(len(boxes), 1, device=images.device)}
        return loss_of_found(self.trunk.detector, found, batch)

    def after_step(self, step: int) -> None:
        """Nothing moves by itself."""


def pasted(images: torch.Tensor, donors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images with pieces of other rows' donors.

    Args:
        images: float32 (b, 3, h, w), 0 to 1.
        donors: the same.

    Returns:
        New images; for each piece its image, float32 (n,), and its box, float32 (n, 4): centre and size, 0 to 1.
    """
    made, rows, boxes = images.clone(memory_format=torch.preserve_format), [], []
    high, wide = images.shape[2:]
    for row in range(len(images)):
        taken: list[tuple[int, int, int, int]] = []
        for _ in range(1 + _draw(_MOST)):
            top, left, rows_of, columns_of = _place(high, wide)
            if any(_overlap((top, left, rows_of, columns_of), other) for other in taken):
                continue
            donor = donors[(row + 1 + _draw(max(1, len(images) - 1))) % len(images)]
            piece = _piece(donor, rows_of, columns_of)
            here = made[row, :, top : top + rows_of, left : left + columns_of]
            mask = _mask(rows_of, columns_of, images.device)
            if float(((piece - here).abs().mean(0) * mask).sum() / mask.sum()) < _CONTRAST:
                continue
            here.copy_(mask * piece + (1 - mask) * here)
            taken.append((top, left, rows_of, columns_of))
            rows.append(float(row))
            boxes.append([(left + columns_of / 2) / wide, (top + rows_of / 2) / high, columns_of / wide, rows_of / high])
    return made, torch.tensor(rows, device=images.device), torch.tensor(boxes, device=images.device).reshape(-1, 4)


def _draw(below: int) -> int:
    return int(torch.randint(below, ()))


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _place(high: int, wide: int) -> tuple[int, int, int, int]:
    """Top, left, rows and columns of a piece."""
    side = math.exp(_uniform(math.log(_SIDES[0]), math.log(_SIDES[1])))
    ratio = math.exp(_uniform(-math.log(_RATIO) / 2, math.log(_RATIO) / 2))
    rows = min(high - 1, max(4, round(high * side * ratio)))
    columns = min(wide - 1, max(4, round(wide * side / ratio)))
    return _draw(high - rows), _draw(wide - columns), rows, columns


def _overlap(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    (top, left, rows, columns), (top2, left2, rows2, columns2) = one, other
    return top < top2 + rows2 and top2 < top + rows and left < left2 + columns2 and left2 < left + columns


def _piece(donor: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A random piece of a donor (3, h, w), shown larger or smaller, (3, rows, columns)."""
    zoom = math.exp(_uniform(-math.log(_ZOOM), math.log(_ZOOM)))
    high, wide = min(donor.shape[1], max(2, round(rows / zoom))), min(donor.shape[2], max(2, round(columns / zoom)))
    top, left = _draw(donor.shape[1] - high + 1), _draw(donor.shape[2] - wide + 1)
    cut = donor[None, :, top : top + high, left : left + wide]
    return torch.nn.functional.interpolate(cut, (rows, columns), mode="bilinear", antialias=high > rows)[0]


def _mask(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Which pixels of its box a piece covers, (rows, columns), 0 or 1: all of them, or the ellipse in it."""
    if torch.rand(()) < 0.5:
        return torch.ones(rows, columns, device=device)
    down = (torch.arange(rows, device=device) + 0.5) / rows * 2 - 1
    across = (torch.arange(columns, device=device) + 0.5) / columns * 2 - 1
    return ((down[:, None] ** 2 + across[None] ** 2) <= 1).float()
