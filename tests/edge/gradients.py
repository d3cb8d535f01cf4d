"""Run under torchrun: gradients of methods' losses over eight images, which the processes share, into a file."""

from __future__ import annotations

import sys
from typing import Any

import torch

from edge.methods import Settings, build_method
from edge.processes import is_first, launched_fabric
from edge.trunk import Trunk
from edge.yolo import build_detector

BATCH = 8


def main(out: str, *names: str) -> None:
    fabric = launched_fabric()
    found = {}
    for name in names:
        torch.manual_seed(0)
        trunk = Trunk(build_detector("yolo11n", ["x"], 0), "yolo11n", "backbone")
        method: Any = build_method(name, trunk, Settings(imgsz=64, batch=BATCH, images=64, steps=10))
        wrapped = fabric.setup_module(method.double().eval())  # batch norm would see what one process has
        share, rank = BATCH // fabric.world_size, fabric.global_rank
        first, second = torch.rand(2, BATCH, 3, 64, 64, dtype=torch.double)[:, rank * share : (rank + 1) * share]
        fabric.backward(wrapped(first, second))
        found[name] = {key: value.grad for key, value in method.named_parameters() if value.grad is not None}
    if is_first():
        torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
