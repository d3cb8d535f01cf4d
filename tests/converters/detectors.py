"""Small real detectors for tests: Ultralytics' with spread-out scores, and tiny ones with other people's heads."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from converters.checkpoint import import_ultralytics

NAMES = ("a", "b", "c")
STRIDES = (8, 16, 32)


def noise(size_wh: tuple[int, int], count: int = 2) -> list[NDArray[np.uint8]]:
    """Canvases of random bytes, (1, h, w, 3)."""
    draw = np.random.default_rng(5)
    return [draw.integers(0, 256, (1, size_wh[1], size_wh[0], 3), dtype=np.uint8) for _ in range(count)]


def spread(detector: Any, images: torch.Tensor | None = None, seed: int = 0) -> Any:
    """Makes a fresh detector see: its normalisation fits `images` (noise by default), and its last convolutions tell anchors and classes apart.

    Fresh weights let nothing of the image through to the head and give every anchor the same box and score, so that any
    two graphs would agree.
    """
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(4, 3, 128, 128, generator=draw) if images is None else images
    _fit_normalisation(detector, images)
    head = detector.eval().model[-1]
    branches = [getattr(head, name, None) for name in ("cv2", "cv3", "one2one_cv2", "one2one_cv3")]
    finals = [level[-1] for branch in branches if branch is not None for level in branch]
    outputs: dict[int, torch.Tensor] = {}
    hooks = [conv.register_forward_hook(lambda module, _, out: outputs.__setitem__(id(module), out)) for conv in finals]
    with torch.no_grad():
        detector(images)
        for conv in finals:
            over_space = outputs[id(conv)].std(dim=(2, 3)).mean(dim=1).max()  # one picture may stir far more than others
            conv.weight.mul_(1.5 / over_space.clamp(min=1e-3))
            conv.bias.copy_(torch.randn(conv.bias.shape, generator=draw) - 1)
    for hook in hooks:
        hook.remove()
    return detector


def _fit_normalisation(detector: Any, images: torch.Tensor) -> None:
    layers = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = None  # a plain average
        layer.reset_running_stats()
    with torch.no_grad():
        for name, module in detector.named_modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # At unit scale random layers amplify rounding from one to the next, and attention picks one place.
                module.weight.mul_(0.25 if name.endswith(("qkv.bn", "qk.bn")) else 0.5)
        detector.train()(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


class TinyHead(torch.nn.Module):
    """A convolution a level, and the decoding that each exporter leaves in its graph.

    `kind`: `ultralytics`, `ultralytics-end2end`, `yolov5`, `yolox`, `yolox-decoded`, or `yolov5 shares` (a YOLOv5 whose
    boxes are shares of the canvas).
    """

    def __init__(self, kind: str, side: int, classes: int = 3, *, focus: bool = False, maps: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind, self.side, self.classes, self.maps = kind, side, classes, maps
        self.anchors = 3 if kind.startswith("yolov5") else 1
        self.before = 4 if kind.startswith("ultralytics") else 5
        self.focus = focus
        self.stem = torch.nn.Conv2d(12 if focus else 3, 8, 3, padding=1, stride=1 if focus else 2)
        self.downs = torch.nn.ModuleList(torch.nn.Conv2d(8, 8, stride // 2, stride=stride // 2) for stride in STRIDES)
        width = self.anchors * (self.before + classes)
        heads = [torch.nn.Conv2d(8, width, 1) for _ in STRIDES]
        for head in heads:
            torch.nn.init.normal_(head.weight)
        self.heads = torch.nn.ModuleList(heads)

    def forward(self, images: torch.Tensor) -> Any:
        if self.focus:
            parts = [images[..., i::2, j::2] for j in (0, 1) for i in (0, 1)]
            images = torch.cat(parts, 1)
        if self.kind.startswith("yolox"):
            images = images / 255
        features = torch.nn.functional.silu(self.stem(images))
        maps = [head(down(features)) for head, down in zip(self.heads, self.downs, strict=True)]
        rows = torch.cat([self._rows(item, stride) for item, stride in zip(maps, STRIDES, strict=True)], 1)
        if self.kind == "ultralytics":
            return rows.transpose(1, 2)
        if self.kind == "ultralytics-end2end":
            return self._best(rows)
        return (rows, *(item[:, None] for item in maps)) if self.maps else rows

    def _rows(self, values: torch.Tensor, stride: int) -> torch.Tensor:
        """(1, anchors of the level, channels) as this kind decodes them."""
        cells = self.side // stride
        channels = self.before + self.classes
        rows = values.view(1, self.anchors, channels, cells * cells).permute(0, 1, 3, 2).reshape(1, -1, channels)
        y, x = torch.meshgrid(torch.arange(cells), torch.arange(cells), indexing="ij")
        grid = torch.stack([x, y], -1).view(1, -1, 2).float().repeat(1, self.anchors, 1)
        xy, wh, rest = rows[..., :2], rows[..., 2:4], rows[..., 4:].sigmoid()
        if self.kind.startswith("yolov5"):
            pixels = [(xy.sigmoid() * 2 - 0.5 + grid) * stride, (wh.sigmoid() * 2) ** 2 * 3 * stride]
            shares = self.side if self.kind.endswith("shares") else 1
            return torch.cat([*(item / shares for item in pixels), rest], -1)
        if self.kind == "yolox":
            return torch.cat([xy * 0.1, wh * 0.1, rest], -1)
        centre, size = (xy * 0.1 + grid) * stride, (wh * 0.1).exp() * stride
        if self.kind == "ultralytics-end2end":
            return torch.cat([centre - size / 2, centre + size / 2, rest], -1)
        return torch.cat([centre, size, rest], -1)

    def _best(self, rows: torch.Tensor) -> torch.Tensor:
        scores, label = rows[..., 4:].max(-1)
        best, index = scores.topk(20, dim=1)
        boxes = rows[..., :4].gather(1, index[..., None].expand(-1, -1, 4))
        return torch.cat([boxes, best[..., None], label.gather(1, index)[..., None].float()], -1)


def export(module: torch.nn.Module, path: Path, side: int, opset: int = 17, *, dynamic: bool = False) -> Path:
    """Exports by tracing, as these projects do."""
    axes = {"images": {2: "height", 3: "width"}} if dynamic else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.zeros(1, 3, side, side),), path, opset_version=opset, dynamo=False, input_names=["images"],
            dynamic_axes=axes,
        )  # fmt: skip
    return path


def spread_detector(model: str, names: Sequence[str] = NAMES, images: torch.Tensor | None = None) -> Any:
    """An Ultralytics detector with random weights and spread-out scores."""
    from edge.yolo import build_detector

    return spread(build_detector(model, names, seed=1), images)


def save_pickled(detector: Any, path: Path, imgsz: int = 96) -> Path:
    """A `.pt` as Ultralytics' trainer writes it: the pickled model and its training arguments."""
    content = {"epoch": -1, "model": None, "ema": detector, "train_args": {"imgsz": imgsz}, "date": "today"}
    torch.save(content, path)
    return path


def ultralytics_export(model: str, path: Path, side: int, **options: Any) -> Path:
    """Ultralytics' own exporter on a model with spread-out scores."""
    import_ultralytics()
    from ultralytics import YOLO

    yolo = YOLO(save_pickled(spread_detector(model), path.with_suffix(".pt"), side))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer
        Path(yolo.export(format="onnx", imgsz=side, simplify=False, device="cpu", **options)).replace(path)
    return path
