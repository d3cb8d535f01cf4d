"""Masked modelling for convolutional networks: SparK (Tian et al. 2023, arXiv 2301.03580).

Squares of 32 pixels are hidden and a small decoder paints them. A plain convolution would smear the hidden squares over the
visible ones; as SparK, we mask every map again after each convolution and pooling and let batch norm see visible cells only
(yolov9 also pools by plain functions: what those smear is hidden again by the convolution that follows). Layers that mix all
positions (SPPF, attention) cannot be masked: what is trained ends before them, at stride 32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from edge.errors import TrainingError
from edge.large_batch import statistics_kept
from edge.methods import Settings
from edge.methods.views import RandomView, ViewSpec
from edge.trunk import Trunk

STRIDE = 32
HIDDEN = 0.6  # SparK's share
_LIGHT = 0.0  # colours stay: they are what is painted
_WIDTH = 128
_SMEARS = (torch.nn.Conv2d, torch.nn.MaxPool2d, torch.nn.AvgPool2d)  # visible cells over hidden ones beside them
_MIXES = ("SPPF", "SPPELAN", "C2PSA", "PSA", "A2C2f")  # Ultralytics' names of layers that mix all positions


class MaskedModelling(torch.nn.Module):
    """See `Method`."""

    def __init__(self, trunk: Trunk, settings: Settings) -> None:
        super().__init__()
        if settings.imgsz < 2 * STRIDE:
            raise TrainingError(
                f"a picture of {settings.imgsz} pixels has no two squares, one to hide; take --imgsz {2 * STRIDE}"
            )
        self.trunk = trunk
        self.views = RandomView(
            ViewSpec(settings.imgsz // STRIDE * STRIDE, jitter=_LIGHT, grey=0, blur=0, upright=settings.upright)
        )
        self._layers = maskable(trunk)
        with torch.no_grad(), statistics_kept(trunk):
            maps = self._maps(torch.zeros(1, 3, 2 * STRIDE, 2 * STRIDE), torch.ones(1, 1, 2, 2, dtype=torch.bool))
        self.tokens = torch.nn.ParameterList(torch.zeros(1, found.shape[1], 1, 1) for found in maps)
        self.lateral = torch.nn.ModuleList(torch.nn.Conv2d(found.shape[1], _WIDTH, 1) for found in maps)
        self.merge = torch.nn.ModuleList(_block(_WIDTH) for _ in maps)
        self._finest = 2 * STRIDE // maps[0].shape[2]
        self.paint = torch.nn.Conv2d(_WIDTH, 3 * self._finest**2, 1)

    def forward(self, first: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """Mean squared error on hidden squares of pixels that are normalised within their square."""
        visible = random_mask(len(first), first.shape[2] // STRIDE, first.shape[3] // STRIDE, first.device)
        maps = self._maps(first, visible)
        painted = torch.nn.functional.pixel_shuffle(self.paint(self._decode(maps, visible)), self._finest)
        hidden = ~_grown(visible, first)
        error = (painted - normalised(first)).square()
        return (error * hidden).sum() / (3 * hidden.sum())

    def after_step(self, step: int) -> None:
        """Nothing moves by itself."""

    def _maps(self, images: torch.Tensor, visible: torch.Tensor) -> list[torch.Tensor]:
        """The last map of each stride from 8 on, hidden cells zero."""
        found: dict[int, torch.Tensor] = {}
        current = images * _grown(visible, images)
        with _sparse(self._layers, visible):
            for layer in self._layers:
                current = layer(current)
                for each in current if isinstance(current, list) else [current]:  # a ResNet gives what each stage makes
                    found[images.shape[2] // each.shape[2]] = each
        return [found[stride] for stride in sorted(found) if stride >= 8]

    def _decode(self, maps: list[torch.Tensor], visible: torch.Tensor) -> torch.Tensor:
        """From the coarsest map to the finest, hidden cells filled with a learnt token."""
        filled = [torch.where(_grown(visible, found), found, token) for found, token in zip(maps, self.tokens, strict=True)]
        sides = [lateral(found) for lateral, found in zip(self.lateral, filled, strict=True)]
        current: torch.Tensor = sides[-1].new_zeros(())
        for side, merge in zip(reversed(sides), reversed(self.merge), strict=True):
            above = torch.nn.functional.interpolate(current, side.shape[2:]) if current.ndim else current
            current = merge(side + above)
        return current


def maskable(trunk: Trunk) -> list[torch.nn.Module]:
    """The trunk's first layers, up to the first one that is no chain, mixes all positions, or makes a map finer."""
    layers: list[torch.nn.Module] = []
    for layer in trunk.layers:
        if layer.f != -1 or type(layer).__name__ in _MIXES or isinstance(layer, torch.nn.Upsample):
            break
        layers.append(layer)
    return layers


def random_mask(count: int, rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Which squares are visible, the same number in each image: bool (count, 1, rows, columns)."""
    seen = max(1, round((1 - HIDDEN) * rows * columns))
    order = torch.rand(count, rows * columns, device=device).argsort(1)
    return (order < seen).view(count, 1, rows, columns)


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Each square of 32 pixels with mean 0 and variance 1 over its three colours, as in MAE (arXiv 2111.06377, section 3)."""
    mean, square = (
        torch.nn.functional.avg_pool2d(values, STRIDE).mean(1, keepdim=True) for values in (images, images.square())
    )
    variance = square - mean.square()
    spread = (variance.clamp_min(0) + 1e-4).sqrt()
    grow = partial(torch.nn.functional.interpolate, scale_factor=float(STRIDE))
    return (images - grow(mean)) / grow(spread)


def _grown(visible: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The mask at the size of a map."""
    times = like.shape[2] // visible.shape[2]
    return visible.repeat_interleave(times, 2).repeat_interleave(like.shape[3] // visible.shape[3], 3)


def _block(width: int) -> torch.nn.Module:
    layers = torch.nn.Conv2d(width, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width), torch.nn.SiLU()
    return torch.nn.Sequential(*layers)


@contextmanager
def _sparse(layers: list[torch.nn.Module], visible: torch.Tensor) -> Iterator[None]:
    """Within, convolutions and pooling give zero in hidden cells and batch norm sees visible cells only."""
    changed = []
    try:
        for layer in layers:
            for module in layer.modules():
                if isinstance(module, _SMEARS):
                    module.forward = partial(_masked, module, visible)  # type: ignore[method-assign]
                elif isinstance(module, torch.nn.BatchNorm2d):
                    module.forward = partial(_visible_only, module, visible)  # type: ignore[method-assign]
                else:
                    continue
                changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own again


def _masked(module: torch.nn.Module, visible: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = type(module).forward(module, images)
    return found * _grown(visible, found)


def _visible_only(norm: torch.nn.BatchNorm2d, visible: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    cells = images.permute(0, 2, 3, 1)
    seen = _grown(visible, images)[:, 0]
    flat = cells[seen]
    kept = torch.zeros_like(cells)
    kept[seen] = torch.nn.BatchNorm2d.forward(norm, flat[:, :, None, None])[:, :, 0, 0]
    return kept.permute(0, 3, 1, 2)
