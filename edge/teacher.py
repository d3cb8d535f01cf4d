"""What `distill` learns from: the neck of a larger YOLO, or any model of timm, as maps at the strides of P3 to P5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from converters.errors import CheckpointError
from edge.errors import TrainingError
from edge.timm_models import timm_model
from edge.trunk import Trunk
from runtime.errors import first_line

STRIDES = (8, 16, 32)  # of P3, P4 and P5


class TimmTeacher(torch.nn.Module):
    """A model of timm: images float32 (b, 3, h, w) RGB in 0 to 1 → float32 maps (b, c, h / stride, w / stride), finest first.

    Of each stride it is the deepest map at the nearest resolution that the model has. A plain ViT has one resolution: its last
    map, after its last norm, serves all strides, as in ViTDet (Li et al. 2022, arXiv 2203.16527).

    Attributes:
        channels: of each map.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: Any, name: str, imgsz: int) -> None:
        """Looks once at an empty picture of that side.

        Raises:
            TrainingError: the model cannot look at such pictures, or gives no maps.
        """
        super().__init__()
        self.model = model.eval()
        configured = model.pretrained_cfg
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(configured[key]).view(-1, 1, 1))
        try:
            reductions = [info["reduction"] for info in model.feature_info]
            self._taken = [nearest(reductions, stride) for stride in STRIDES]
            coarsest = max(reductions[at] for at in self._taken)
            self._side = max(1, round(imgsz / coarsest)) * coarsest  # patches of 14 pixels do not tile a view
            if configured.get("fixed_input_size"):
                if hasattr(model, "set_input_size"):
                    model.set_input_size(img_size=(self._side, self._side))
                else:
                    self._side = configured["input_size"][-1]
            with torch.no_grad():
                self.channels = [int(found.shape[1]) for found in self(torch.zeros(1, 3, imgsz, imgsz))]
        except Exception as error:  # more than a thousand models, each with assertions of its own
            raise TrainingError(
                f"{name} gives no maps of views of {imgsz} px ({first_line(error)}); choose another --teacher-model"
            ) from error

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The maps; images are squares."""
        seen = (resampled(images, self._side) - self.mean) / self.std
        picked = sorted(set(self._taken))
        maps = self.model.forward_intermediates(
            seen, indices=picked, norm=len(picked) == 1, output_fmt="NCHW", intermediates_only=True
        )
        side = images.shape[-1]
        return [
            resampled(maps[picked.index(at)].float(), side // stride) for at, stride in zip(self._taken, STRIDES, strict=True)
        ]


def nearest(reductions: Sequence[int], stride: int) -> int:
    """The index of the deepest map whose pixels a cell are nearest to the stride."""
    return min(range(len(reductions)), key=lambda at: (abs(math.log2(reductions[at] / stride)), -at))


def resampled(found: torch.Tensor, side: int) -> torch.Tensor:
    """(b, c, side, side), without aliasing."""
    if found.shape[2:] == (side, side):
        return found
    return torch.nn.functional.interpolate(found, (side, side), mode="bilinear", antialias=True)


def load_teacher(path: Path, model: str, imgsz: int) -> Trunk | TimmTeacher:
    """A teacher in evaluation mode, whose weights stay as they are. Nothing is fetched from anywhere.

    Args:
        path: a YOLO's checkpoint; or, with `model`, weights by timm's names in a `.safetensors` or a torch file of tensors.
        model: timm's name of the model, with or without tag; empty for a YOLO.
        imgsz: side of the views in pixels.

    Raises:
        CheckpointError: the file cannot be read, or is of another model.
        TrainingError: timm has no such model, or it gives no maps.
        MissingPackageError: timm or safetensors is not installed.
    """
    teacher: Trunk | TimmTeacher
    if model:
        teacher = TimmTeacher(timm_model(model, path), model, imgsz)
    else:
        try:
            checkpoint = load_checkpoint(path)
            teacher = Trunk(detector_from_checkpoint(checkpoint), checkpoint.model)
        except CheckpointError as error:
            raise CheckpointError(f"{error} (of a timm model, give its name with --teacher-model)") from error
    return teacher.eval().requires_grad_(False)
