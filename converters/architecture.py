"""Architectures as Ultralytics writes them down: a YAML of layers, checked before anything is built from it.

Ultralytics evaluates a YAML's `activation` as Python and calls any name that a layer carries, so a YAML out of a file
of weights is as untrusted as the file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from converters.errors import CheckpointError

SCALES = {
    "yolov5": "nsmlx",
    "yolov8": "nsmlx",
    "yolov9": "tsmce",
    "yolov10": "nsmblx",
    "yolo11": "nsmlx",
    "yolo12": "nsmlx",
    "yolo26": "nsmlx",
}
MODEL_NAMES = tuple(family + scale for family, scales in SCALES.items() for scale in scales)
_HEADS = ("Detect", "v10Detect")
_LITERAL = r"(\w+=)?(-?[\d.]+(e-?\d+)?|True|False|None)"
_ACTIVATION = re.compile(rf"(torch\.)?nn\.[A-Z]\w*\(({_LITERAL}(, ?{_LITERAL})*)?\)")  # nn.SiLU(), nn.LeakyReLU(0.1)
_BUILDS = ("backbone", "head", "scales", "activation", "end2end", "reg_max", "depth_multiple", "width_multiple")


def read_architecture(path: Path) -> dict[str, Any]:
    """Reads a user's architecture YAML; the scale is the letter in its name, as in `yolo11s-mine.yaml`.

    Raises:
        CheckpointError: it cannot be read, or is no detector's.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        first = str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read as YAML ({first}); name an architecture like yolo11n.yaml") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no architecture (keys nc, backbone, head); name one like yolo11n.yaml")
    letter = re.search(r"yolov?\d+([a-z])", path.stem)
    return checked_architecture({**content, "scale": letter[1] if letter else "", "yaml_file": path.name}, path)


def checked_architecture(content: Mapping[str, Any], source: Path | str) -> dict[str, Any]:
    """A copy that is safe to look at: its form checked, pretrained weights of parts left out (they would be downloaded).

    The names of the layers are for the builder to check, which knows what exists.

    Raises:
        CheckpointError: not an architecture, not a detector, or an activation that is more than a call of torch.nn.
    """
    spec = copy.deepcopy({str(key): value for key, value in content.items()})
    if not isinstance(spec.get("nc"), int) or not 0 < spec["nc"] < 100_000:
        raise CheckpointError(f"{source} must give the number of classes as nc, but has {spec.get('nc')!r}; add it")
    if not _has_layers(spec):
        raise CheckpointError(
            f"{source} must list its layers under backbone and head as [from, repeats, module, args]; compare with yolo11.yaml"
        )
    head = spec["head"][-1][2]
    if head not in _HEADS:
        raise CheckpointError(f"{source} ends in {head}, expected {' or '.join(_HEADS)}; only detectors can be converted")
    activation = spec.get("activation")
    if activation and not (isinstance(activation, str) and _ACTIVATION.fullmatch(activation)):
        raise CheckpointError(f"{source} has activation {activation!r}, expected a call like nn.SiLU() or nn.LeakyReLU(0.1)")
    scales = spec.get("scales")
    if isinstance(scales, dict) and scales and spec.get("scale") not in scales:
        spec["scale"] = next(iter(scales))  # Ultralytics' choice
    for _, _, module, arguments in layers_of(spec):
        if module == "TorchVision":
            arguments[2:3] = [None]  # channels, model, weights, …
    return spec


def layers_of(spec: Mapping[str, Any]) -> Iterator[list[Any]]:
    """The layers [from, repeats, module, args], backbone first."""
    yield from spec["backbone"]
    yield from spec["head"]


def same_network(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two architectures give the same layers, but for the number of classes."""
    return all(one.get(key) == other.get(key) for key in _BUILDS)


def name_of(spec: Mapping[str, Any]) -> str:
    """The name that an architecture goes by: its file's, with the scale."""
    stem, scale = Path(str(spec.get("yaml_file", "custom"))).stem, str(spec.get("scale") or "")
    return stem + scale if stem in SCALES else stem


def _has_layers(spec: Mapping[str, Any]) -> bool:
    parts = [spec.get("backbone"), spec.get("head")]
    return all(
        isinstance(part, list)
        and part
        and all(
            isinstance(row, list) and len(row) == 4 and isinstance(row[2], str) and isinstance(row[3], list) for row in part
        )
        for part in parts
    )
