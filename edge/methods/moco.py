"""MoCo v2 (Chen et al. 2020, arXiv 2003.04297): as SimCLR, but the images that repel wait in a queue.

So a small batch is enough. The queue is filled by a slowly moving copy of the network, since keys of quickly changing
weights could not be compared.
"""

from __future__ import annotations

import copy
import math

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules.heads import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum

from edge.methods import Settings
from edge.methods.views import TwoViews, ViewSpec
from edge.processes import several
from edge.trunk import Trunk, pooled

TEMPERATURE = 0.2
_PROJECTION = (512, 128)
_QUEUE_SHARE = 0.4  # of the pool: with all of it, an image's own older keys would repel it
_MOMENTUM = 0.99  # 0.999 of the paper is for runs of a million steps; it ends at 1


class MoCo(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        self.trunk, self._steps = trunk, settings.steps
        self.views = TwoViews(ViewSpec(settings.imgsz, upright=settings.upright))
        self.head = MoCoProjectionHead(sum(trunk.channels), *_PROJECTION)
        self.keys_trunk, self.keys_head = copy.deepcopy(trunk), copy.deepcopy(self.head)
        for module in (self.keys_trunk, self.keys_head):
            deactivate_requires_grad(module)
        step = 2 * settings.batch  # keys of both views
        queue = max(step, round(2 * _QUEUE_SHARE * settings.images) // step * step)
        self.criterion = NTXentLoss(
            temperature=TEMPERATURE, memory_bank_size=(queue, _PROJECTION[1]), gather_distributed=several()
        )

    def forward(self, first: torch.Tensor, second: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """InfoNCE of queries against the keys of the other views and of the queue, both ways (MoCo v3's symmetry)."""
        queries = self.head(pooled(self.trunk(torch.cat([first, second])))).chunk(2)
        with torch.no_grad():
            keys = self.keys_head(pooled(self.keys_trunk(torch.cat([first, second])))).chunk(2)
        # One call for both ways: the queue takes the keys in afterwards, so that no image's own key repels it.
        loss: torch.Tensor = self.criterion(torch.cat(queries), torch.cat([keys[1], keys[0]]))
        return loss

    def after_step(self, step: int) -> None:
        """The copy follows, ever more slowly (cosine, as BYOL's and MoCo v3's)."""
        share = (1 + math.cos(math.pi * min(1.0, step / max(1, self._steps)))) / 2
        momentum = 1 - (1 - _MOMENTUM) * share
        update_momentum(self.trunk, self.keys_trunk, momentum)
        update_momentum(self.head, self.keys_head, momentum)

    def get_extra_state(self) -> dict[str, torch.Tensor]:
        """The queue, which lightly leaves out of its state: a resumed run goes on with the same keys."""
        bank = self.criterion.memory_bank
        return {"bank": bank.bank.clone(), "bank_ptr": bank.bank_ptr.clone()}

    def set_extra_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes the queue up again."""
        bank = self.criterion.memory_bank
        bank.bank, bank.bank_ptr = state["bank"].to(bank.bank.device), state["bank_ptr"].to(bank.bank_ptr.device)
