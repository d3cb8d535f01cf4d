"""Methods small enough for tests: settings, a trunk, a batch of views."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edge.methods import Settings
from edge.trunk import Trunk
from edge.yolo import Part, build_detector
from runtime.sources.simulated import Line

SETTINGS = Settings(imgsz=96, batch=8, images=64, steps=20)


def trunk(part: Part = "neck", model: str = "yolo11n") -> Trunk:
    return Trunk(build_detector(model, ["x"], 0), model, part)


def batch_of(method: Any, step: int, count: int = 8) -> list[torch.Tensor]:
    line = Line(3, (128, 96))
    made = [method.views(line.image(5 * index), np.random.default_rng((step, index))) for index in range(count)]
    return [torch.stack(side) for side in zip(*made, strict=True)]
