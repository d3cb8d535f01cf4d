"""YOLO11's neck and head on a torchvision ResNet, and ResNet weights from elsewhere.

Weights by their usual names (`conv1.weight`, `layer1.0.bn1.running_mean`, …) are read from torchvision, timm and torch.hub, below
any prefix (`module.encoder_q.`), and from VISSL's checkpoints, which keep them in `classy_state_dict`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from converters.errors import CheckpointError

if TYPE_CHECKING:
    import torch

# With the neck's scale in the name: channels of P3 to P5, then blocks of the third stage and whether they are bottlenecks,
# which tell one depth from another.
_RESNETS = {
    "yolo11n-resnet18": ("resnet18", (128, 256, 512), (2, False)),
    "yolo11s-resnet50": ("resnet50", (512, 1024, 2048), (6, True)),
    "yolo11m-resnet101": ("resnet101", (512, 1024, 2048), (23, True)),
}
BATCH_NORM_EPS = 1e-5  # torchvision's
RESNET_MODELS = tuple(_RESNETS)
LAYERS, LAST_BACKBONE_LAYER = 19, 3
STEM = 64  # channels of the first convolution
_PLACES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}  # among a ResNet's children
_STEM = "conv1.weight"
_PLAIN = re.compile(r"(conv1|bn1|layer[1-4]\.\d+\.((conv|bn)[123]|downsample\.[01]))\.[a-z_]+")
_MOST_MAPPINGS = 1000  # in a file


def resnet_architecture(name: str, scales: Mapping[str, Any]) -> dict[str, Any]:
    """The layers as Ultralytics' YAMLs have them; `scales` are YOLO11's."""
    resnet, channels, _ = _RESNETS[name]
    p3, p4, p5 = (
        [0, 1, "Index", [width, _PLACES[f"layer{stage}"] + 1]] for stage, width in zip((2, 3, 4), channels, strict=True)
    )  # place 0 is the image
    return {
        "nc": 80,
        "scales": dict(scales),
        "backbone": [[-1, 1, "TorchVision", [channels[-1], resnet, None, True, 2, True]], p3, p4, p5],
        "head": [
            [-1, 1, "SPPF", [1024, 5]],
            [-1, 2, "C2PSA", [1024]],
            [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
            [[-1, 2], 1, "Concat", [1]],
            [-1, 2, "C3k2", [512, False]],
            [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
            [[-1, 1], 1, "Concat", [1]],
            [-1, 2, "C3k2", [256, False]],
            [-1, 1, "Conv", [256, 3, 2]],
            [[-1, 8], 1, "Concat", [1]],
            [-1, 2, "C3k2", [512, False]],
            [-1, 1, "Conv", [512, 3, 2]],
            [[-1, 5], 1, "Concat", [1]],
            [-1, 2, "C3k2", [1024, True]],
            [[11, 14, 17], 1, "Detect", ["nc"]],
        ],
    }


def resnet_weights(content: Mapping[Any, Any]) -> tuple[str, dict[str, torch.Tensor]] | None:
    """The model of ours that a file's ResNet is the backbone of, and its tensors by our names; None if it holds no ResNet.

    Raises:
        CheckpointError: a ResNet of another depth or kind.
    """
    for state in _mappings(content):
        for key in state:
            prefix = key.removesuffix(_STEM) if isinstance(key, str) and key.endswith(_STEM) else None
            if prefix is not None and f"{prefix}layer4.0.conv1.weight" in state:
                return _taken(
                    {k.removeprefix(prefix): v for k, v in state.items() if isinstance(k, str) and k.startswith(prefix)}
                )
    return None


def _taken(own: Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    """By our names; a tensor that no plain ResNet has (squeeze and excitation, anti-aliasing) would be lost without a word."""
    stages = {key: value for key, value in own.items() if key.split(".")[0] in _PLACES}
    strange = [key for key in stages if not _PLAIN.fullmatch(key)]
    depth = len({key.split(".")[1] for key in stages if key.startswith("layer3.")}), "layer1.0.conv3.weight" in stages
    named = [name for name, (_, _, known) in _RESNETS.items() if known == depth]
    if strange or not named:
        why = f"it has {strange[0]}" if strange else f"{depth[0]} blocks in its third stage"
        raise CheckpointError(
            f"a ResNet that is none of {', '.join(kind for kind, _, _ in _RESNETS.values())} ({why}); take one of those"
        )
    return named[0], {_our_name(key): value for key, value in stages.items()}


def _our_name(key: str) -> str:
    first, rest = key.split(".", 1)
    return f"model.0.m.{_PLACES[first]}.{rest}"


def _mappings(content: Mapping[Any, Any]) -> Iterator[Mapping[Any, Any]]:
    """A file's mappings, the outer ones first, each once, and not more than a checkpoint has."""
    seen, waiting = {id(content)}, deque([content])
    while waiting:
        current = waiting.popleft()
        yield current
        for value in current.values():
            if isinstance(value, Mapping) and id(value) not in seen and len(seen) < _MOST_MAPPINGS:
                seen.add(id(value))
                waiting.append(value)
