"""The part of a YOLO that self-supervision looks through: the backbone alone, or with the neck that gives P3 to P5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from converters.errors import CheckpointError
from edge.yolo import Part, family_of

_PROBE = 128  # pixels of the picture that shapes are found with


class Trunk(torch.nn.Module):
    """Layers of a detector, sharing its weights: images float32 (b, 3, h, w) RGB in 0 to 1 → feature maps, finest first.

    Attributes:
        channels: of each map.
        strides: pixels of the image in a cell of each map.
    """

    def __init__(self, detector: torch.nn.Module, model: str, part: Part = "neck") -> None:
        """`backbone` gives its last map (P5), `neck` and `localizer` the maps that the head looks at (P3, P4, P5).

        Raises:
            CheckpointError: a backbone that is no plain chain of layers has no last map.
        """
        super().__init__()
        layers: list[Any] = list(detector.model)  # type: ignore[arg-type]
        head = len(layers) - 1
        if part == "backbone":
            last = family_of(model).last_backbone_layer
            if not all(isinstance(layer.f, int) for layer in layers[: last + 1]):
                raise CheckpointError(f"the backbone of {model} is no plain chain of layers; train it with its neck")
            self._taken: tuple[int, ...] = (last,)
        else:
            self._taken = tuple(layers[head].f)
        self._chain: list[Any] = layers[: max(self._taken) + 1]
        self.layers = torch.nn.ModuleList(self._chain)
        self._detector = [detector]  # in a list: its layers are ours already, or of no concern
        training = self.training
        with torch.no_grad():
            maps = self.eval()(torch.zeros(1, 3, _PROBE, _PROBE))
        self.train(training)
        self.channels = [int(found.shape[1]) for found in maps]
        self.strides = [_PROBE // int(found.shape[2]) for found in maps]

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps, float32 (b, c, h / stride, w / stride) each."""
        outputs: list[torch.Tensor] = []
        current = images
        for layer in self._chain:
            source = layer.f
            if isinstance(source, int):
                current = current if source == -1 else outputs[source]
                current = layer(current)
            else:
                current = layer([current if index == -1 else outputs[index] for index in source])
            outputs.append(current)
        return [outputs[index] for index in self._taken]

    @property
    def detector(self) -> Any:
        """The whole of it: our layers and its head."""
        return self._detector[0]


def pooled(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """One vector an image, (b, sum of channels): the mean of each map, side by side."""
    return torch.cat([found.mean(dim=(2, 3)) for found in maps], dim=1)
