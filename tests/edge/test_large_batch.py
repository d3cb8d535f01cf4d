"""Gradients of a large batch, chunk by chunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edge.large_batch import accumulated_backward, cached_backward, in_chunks
from edge.methods.simclr import SimCLR
from tests.edge.small_methods import SETTINGS, batch_of, trunk


def test_large_batch__gradients_are_those_of_the_whole_batch() -> None:
    method: Any = SimCLR(trunk("backbone"), SETTINGS)
    for module in method.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()  # else a chunk is normalised by itself
    method.double()
    views = tuple(view.double() for view in batch_of(method, 0))
    whole = method(*views)
    whole.backward()
    expected = [p.grad.clone() for p in method.parameters()]
    method.zero_grad()
    loss = cached_backward(method, method, views, 3, torch.autograd.backward)
    torch.testing.assert_close(loss, whole.detach())
    for parameter, gradient in zip(method.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("count", "chunk", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [3, 3, 3]), (9, 8, [5, 4]), (3, 4, [3]), (3, 2, [3]), (1, 4, [1]), (5, 2, [3, 2])],
)
def test_in_chunks__none_of_a_single_image(count: int, chunk: int, sizes: list[int]) -> None:
    views = (torch.arange(count), torch.arange(count) + 100)
    parts = in_chunks(views, chunk)
    assert [len(part[0]) for part in parts] == sizes
    assert torch.equal(torch.cat([part[1] for part in parts]), views[1])


def test_large_batch__accumulated_gradients_are_those_of_the_mean_loss() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, 1).double()
    views = (torch.randn(7, 5, dtype=torch.double), torch.randn(7, 1, dtype=torch.double))

    def loss_of(view: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.mse_loss(layer(view), wanted)

    whole = loss_of(*views)
    (expected,) = torch.autograd.grad(whole, [layer.weight])
    loss = accumulated_backward(loss_of, views, 3, torch.autograd.backward)
    torch.testing.assert_close(loss, whole.detach())
    torch.testing.assert_close(layer.weight.grad, expected)


def test_large_batch__batch_norm_counts_a_chunk_once() -> None:
    method: Any = SimCLR(trunk("backbone"), SETTINGS).train()
    norm = next(module for module in method.modules() if isinstance(module, torch.nn.BatchNorm2d))
    cached_backward(method, method, tuple(batch_of(method, 0)), 4, torch.autograd.backward)
    assert norm.num_batches_tracked is not None
    assert int(norm.num_batches_tracked) == 2
