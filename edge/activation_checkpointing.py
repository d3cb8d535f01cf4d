"""Less memory for training: a layer keeps what came in, and computes its activations again on the way back.

Chen et al. 2016, arXiv 1604.06174. The weights come out the same, later: the forward pass is run twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from edge.large_batch import statistics_kept


def checkpoint_activations(layers: Iterable[torch.nn.Module]) -> None:
    """From here on the layers drop their inner activations in training; names and weights stay as they are."""
    for layer in layers:
        if any(layer.children()):  # a single operation has none, and may work in place on what came in
            layer.forward = partial(_recomputed, layer)


def _recomputed(layer: torch.nn.Module, *inputs: Any) -> Any:
    forward = partial(type(layer).forward, layer)
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, layer))


def _contexts(layer: torch.nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first pass and of the second, which must not count the batch once more."""
    return nullcontext(), statistics_kept(layer)
