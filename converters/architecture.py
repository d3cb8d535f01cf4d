"""Architectures as Ultralytics writes them down: a YAML of layers, checked before anything is built from it.

Ultralytics evaluates a YAML's `activation` as Python, calls any name that a layer carries, and looks a layer's words up
among its own variables. So a YAML out of a file of weights is as untrusted as the file, and only what is listed here
reaches the builder: known keys, known layers, known words and numbers within limits.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from converters.errors import CheckpointError
from converters.resnet import RESNET_MODELS
from runtime.errors import first_line

SCALES = {
    "yolov5": "nsmlx",
    "yolov8": "nsmlx",
    "yolov9": "tsmce",
    "yolov10": "nsmblx",
    "yolo11": "nsmlx",
    "yolo12": "nsmlx",
    "yolo26": "nsmlx",
}
MODEL_NAMES = (*(family + scale for family, scales in SCALES.items() for scale in scales), *RESNET_MODELS)
_HEADS = ("Detect", "v10Detect")
# The layers of the detectors in ultralytics' cfg/models (v3 to 26), then those of its RT-DETR and torchvision backbones and
# of YOLOv5's older YAMLs. A list, because whole models are modules too: their first argument is another architecture or the
# name of its file, which nobody would have checked.
LAYERS = frozenset({
    "A2C2f", "AConv", "ADown", "Bottleneck", "C2", "C2PSA", "C2f", "C2fCIB", "C3", "C3Ghost", "C3k2", "CBFuse", "CBLinear",
    "Concat", "Conv", "Detect", "ELAN1", "GhostConv", "PSA", "RepNCSPELAN4", "SCDown", "SPP", "SPPELAN", "SPPF", "Silence",
    "v10Detect", "nn.ConvTranspose2d", "nn.Identity", "nn.MaxPool2d", "nn.Upsample", "nn.ZeroPad2d",
    "AIFI", "DWConv", "HGBlock", "HGStem", "Index", "RepC3", "ResNetLayer", "TorchVision",
    "BottleneckCSP", "C1", "C2fPSA", "C3TR", "C3x", "ConvTranspose", "DWConvTranspose2d", "Focus", "GhostBottleneck",
})  # fmt: skip
_WORDS = ("nc", "None", "nearest", "bilinear")
# Classifiers of torchvision; its detectors download the weights of their backbone even where they are told not to.
_TORCHVISION = re.compile(
    r"(convnext|densenet|efficientnet|mnasnet|mobilenet|regnet|resnet|resnext|shufflenet|squeezenet|vgg|wide_resnet)[a-z0-9_]*"
)
_ACTIVATIONS = (
    "CELU ELU GELU Hardsigmoid Hardswish Hardtanh Identity LeakyReLU Mish PReLU ReLU ReLU6 SELU SiLU Sigmoid Softplus Tanh"
)
_LITERAL = r"([a-z_]+=)?(-?[0-9.]{1,12}(e-?[0-9]{1,2})?|True|False|None)"
_ACTIVATION = re.compile(  # nn.SiLU(), nn.LeakyReLU(0.1)
    rf"(torch\.)?nn\.({_ACTIVATIONS.replace(' ', '|')})\(({_LITERAL}(, ?{_LITERAL})*)?\)"
)
# Four times what the official YAMLs have at most, so that a broken file cannot fill the memory: 64 layers, 18 repeats, 2048
# channels, multiples of 1.5, 16 bins of a box's edge.
_MAX_LAYERS, _MAX_REPEATS, _MAX_NUMBER, _MAX_MULTIPLE, _MAX_BINS = 256, 72, 8192, 6, 64
_MAX_LIST = 16  # arguments of a layer, and numbers in one of them; six in YOLOv9
_BUILDS = ("backbone", "head", "scales", "activation", "end2end", "reg_max", "depth_multiple", "width_multiple")
_NAMING = {"scale": "[a-z]?", "yaml_file": r"[\w /\\:.,'()+-]{1,400}"}  # they make the model's name, so no control characters
_MOST = {"reg_max": _MAX_BINS, "depth_multiple": _MAX_MULTIPLE, "width_multiple": _MAX_MULTIPLE}


def read_architecture(path: Path) -> dict[str, Any]:
    """Reads a user's architecture YAML; the scale is the letter in its name, as in `yolo11s-mine.yaml`.

    Raises:
        CheckpointError: it cannot be read, or is no detector's.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:  # ValueError: no UTF-8, or a date that is none
        first = first_line(error)
        raise CheckpointError(f"{path} cannot be read as YAML ({first}); name an architecture like yolo11n.yaml") from error
    letter = re.search(r"yolov?\d+([a-z])", path.stem)
    named = {"scale": letter[1] if letter else "", "yaml_file": path.name}
    return checked_architecture({**content, **named} if isinstance(content, dict) else content, path)


def checked_architecture(content: Mapping[str, Any], source: Path | str) -> dict[str, Any]:
    """A copy that is safe to build: nothing in it but known keys, layers and words, and numbers within limits.

    Pretrained weights of parts are left out, which would be downloaded.

    Raises:
        CheckpointError: not an architecture, not a detector, or more than these.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source} holds no architecture (keys nc, backbone, head); name one like yolo11n.yaml")
    spec = {key: content[key] for key in ("nc", *_BUILDS) if key in content}
    texts = {key: content[key] for key in _NAMING if isinstance(content.get(key), str)}
    spec.update({key: text for key, text in texts.items() if re.fullmatch(_NAMING[key], text)})
    if not _is_number(spec.get("nc"), 1, 99_999, whole=True):
        raise CheckpointError(
            f"{source} must give the number of classes as nc, 1 to 99999, but has {reprlib.repr(spec.get('nc'))}; correct it"
        )
    if not all(_has_layers(spec.get(part)) for part in ("backbone", "head")):
        raise CheckpointError(
            f"{source} must list its layers under backbone and head as [from, repeats, module, args]; compare with yolo11.yaml"
        )
    head = spec["head"][-1][2]
    if head not in _HEADS:
        raise CheckpointError(
            f"{source} ends in {reprlib.repr(head)}, expected {' or '.join(_HEADS)}; only detectors can be converted"
        )
    spec.update({part: [_layer(row, source) for row in spec[part]] for part in ("backbone", "head")})
    activation = spec.get("activation")
    if activation and not (isinstance(activation, str) and _ACTIVATION.fullmatch(activation)):
        raise CheckpointError(
            f"{source} has activation {reprlib.repr(activation)}, expected a call like nn.SiLU() or nn.LeakyReLU(0.1) of one of "
            f"{_ACTIVATIONS.replace(' ', ', ')}"
        )
    _refuse_sizes(spec, source)
    scales = spec.get("scales")
    if scales:
        spec["scales"] = {name: list(row) for name, row in scales.items()}
        spec["scale"] = spec["scale"] if spec.get("scale") in scales else next(iter(scales))  # Ultralytics' choice
    return spec


def _has_layers(part: object) -> bool:
    return isinstance(part, list) and 0 < len(part) <= _MAX_LAYERS and all(_has_form(row) for row in part)


def _has_form(row: object) -> bool:
    if not (isinstance(row, list) and len(row) == 4):
        return False
    origin, repeats, module, arguments = row
    origins = origin if isinstance(origin, list) else [origin]
    return (
        len(origins) <= _MAX_LAYERS
        and all(_is_number(value, -_MAX_LAYERS, _MAX_LAYERS, whole=True) for value in origins)
        and _is_number(repeats, 1, _MAX_REPEATS, whole=True)
        and isinstance(module, str)
        and isinstance(arguments, list)
        and len(arguments) <= _MAX_LIST
    )


def _layer(row: list[Any], source: Path | str) -> list[Any]:
    """A checked copy of a layer."""
    origin, repeats, module, arguments = row
    if module not in LAYERS:
        raise CheckpointError(
            f"{source} has a layer {reprlib.repr(module)}, which only --trust-pickle reads, from a .pt whose maker you trust; "
            f"else use {', '.join(sorted(LAYERS))}"
        )
    arguments = list(arguments)
    if module == "TorchVision":
        arguments[2:3] = [None]  # channels, model, weights, …
    for place, value in enumerate(arguments):
        named = module == "TorchVision" and place == 1 and isinstance(value, str) and _TORCHVISION.fullmatch(value)
        if not (named or _is_argument(value)):
            raise CheckpointError(
                f"{source} gives its layer {module} the argument {reprlib.repr(value)}, expected a number of at most "
                f"{_MAX_NUMBER}, a list of such, or one of {', '.join(_WORDS)}; correct it"
            )
    return [origin, repeats, module, arguments]


def _is_argument(value: object) -> bool:
    values = value if isinstance(value, list) and len(value) <= _MAX_LIST else [value]
    return value is None or value in _WORDS or all(_is_number(item, -_MAX_NUMBER, _MAX_NUMBER) for item in values)


def _is_number(value: object, least: float, most: float, *, whole: bool = False) -> bool:
    """Whether it is a plain number within limits; a truth value counts as one where it need not be whole."""
    kinds = (int,) if whole else (int, float)
    return isinstance(value, kinds) and not (whole and isinstance(value, bool)) and least <= value <= most


def _refuse_sizes(spec: Mapping[str, Any], source: Path | str) -> None:
    """Raises CheckpointError where depth, width or the head's numbers are not what a YOLO's are."""
    for key, most in _MOST.items():
        if key in spec and not (_is_number(spec[key], 0, most) and spec[key] > 0):
            raise CheckpointError(
                f"{source} has {key} {reprlib.repr(spec[key])}, expected a number above 0 and up to {most}; correct it"
            )
    if not isinstance(spec.get("end2end"), (bool, type(None))):
        raise CheckpointError(f"{source} has end2end {reprlib.repr(spec['end2end'])}, expected true or false; correct it")
    scales = spec.get("scales")
    if scales and not (isinstance(scales, dict) and all(_is_scale(name, row) for name, row in scales.items())):
        raise CheckpointError(
            f"{source} has scales {reprlib.repr(scales)}, expected a letter each with depth, width (up to {_MAX_MULTIPLE}) and "
            f"most channels (up to {_MAX_NUMBER}), like n: [0.50, 0.25, 1024]; correct them"
        )


def _is_scale(name: object, row: object) -> bool:
    limits = (_MAX_MULTIPLE, _MAX_MULTIPLE, _MAX_NUMBER)
    return (
        isinstance(name, str)
        and isinstance(row, list)
        and len(row) == len(limits)
        and all(_is_number(value, 0, most) and value > 0 for value, most in zip(row, limits, strict=True))
    )


def same_network(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two architectures give the same layers, but for the number of classes."""
    return all(one.get(key) == other.get(key) for key in _BUILDS)


def name_of(spec: Mapping[str, Any]) -> str:
    """The name that an architecture goes by: its file's, with the scale."""
    stem, scale = Path(str(spec.get("yaml_file", "custom"))).stem, str(spec.get("scale") or "")
    return stem + scale if stem in SCALES else stem
