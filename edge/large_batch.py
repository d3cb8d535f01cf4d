"""A true large batch on little memory: gradients of a contrastive loss through cached embeddings.

GradCache (Gao et al. 2021, arXiv 2101.06983): embeddings of all chunks are made without gradients, the loss over all of them
gives each embedding's gradient, and each chunk is run once more to carry its own on. So every image repels every other,
which accumulated gradients of small batches do not give. Batch norm sees a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


class Embeds(Protocol):
    """A method whose loss is one of embeddings."""

    def embed(self, *views: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Embeddings (b, d) of each view."""
        ...

    def criterion(self, *embeddings: torch.Tensor) -> torch.Tensor:
        """The loss of all embeddings."""
        ...


def in_chunks(views: tuple[torch.Tensor, ...], chunk: int) -> list[tuple[torch.Tensor, ...]]:
    """Views (b, …) in nearly equal parts of at most `chunk` rows, and of two at least, since batch norm cannot take one."""
    count = len(views[0])
    parts = max(1, min(-(-count // chunk), count // 2))
    return list(zip(*(torch.tensor_split(view, parts) for view in views), strict=True))


def accumulated_backward(
    method: Callable[..., torch.Tensor], views: tuple[torch.Tensor, ...], chunk: int, backward: Callable[..., None]
) -> torch.Tensor:
    """Leaves the gradients of the chunks' mean loss in the parameters; returns that loss, detached.

    It is the whole batch's where each image has a loss of its own. Images of different chunks are not compared.
    """
    loss = views[0].new_zeros(())
    for part in in_chunks(views, chunk):
        share = method(*part) * (len(part[0]) / len(views[0]))
        backward(share)
        loss = loss + share.detach()
    return loss


def cached_backward(
    method: Embeds, modules: torch.nn.Module, views: tuple[torch.Tensor, ...], chunk: int, backward: Callable[..., None]
) -> torch.Tensor:
    """Leaves the gradients of the whole batch's loss in the parameters; returns the loss, detached.

    Args:
        method: embeds and compares.
        modules: the same, whose batch norms are kept from counting a chunk twice.
        views: of the whole batch.
        chunk: images that are run at once.
        backward: `fabric.backward`, or `torch.autograd.backward`.
    """
    parts = in_chunks(views, chunk)
    with torch.no_grad(), statistics_kept(modules):
        embedded = [method.embed(*part) for part in parts]
    whole = [torch.cat(side).requires_grad_() for side in zip(*embedded, strict=True)]
    loss = method.criterion(*whole)
    loss.backward()  # type: ignore[no-untyped-call]
    sizes = [len(part[0]) for part in parts]
    gradients = [torch.split(side.grad, sizes) for side in whole if side.grad is not None]
    for index, part in enumerate(parts):
        again = method.embed(*part)
        proxy = sum((found * side[index]).sum() for found, side in zip(again, gradients, strict=True))
        backward(proxy)
    return loss.detach()


@contextmanager
def statistics_kept(modules: torch.nn.Module) -> Iterator[None]:
    """Within, forward passes leave batch norm's running statistics as they are."""
    norms = [module for module in modules.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0  # and not `track_running_stats`: a pass without them keeps other tensors for the way back
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, counted in before:
            norm.momentum, norm.num_batches_tracked = momentum, counted
