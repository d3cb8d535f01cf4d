"""A model from wherever it comes, as the deployed graph with what belongs to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from converters.errors import ConversionError
from converters.predictions import Reference
from runtime.preprocess import STRIDE, Preprocess

MAX_SIDE = 8192  # pixels, as in a bundle's manifest


@dataclass(frozen=True)
class ImportOptions:
    """How to read a model.

    Attributes:
        imgsz: side of the square canvas in pixels; None takes the model's own.
        model: architecture, where a state dict's shapes cannot tell.
        names: class names that replace the model's.
        head: layout of a plain ONNX's output, one of `onnx_from_onnx.HEADS`; None recognises it.
        trust_pickle: whether a `.pt` may run the code that it holds.
    """

    imgsz: int | None = None
    model: str | None = None
    names: tuple[str, ...] | None = None
    head: str | None = None
    trust_pickle: bool = False


@dataclass(frozen=True, eq=False)
class ImportedModel:
    """A model ready to be quantised.

    Attributes:
        graph: the deployed FP32 graph of DESIGN §3, batch 1.
        name: its architecture, or the stem of its file.
        names: class names.
        preprocess: the canvas, and what the graph does to its bytes.
        nms: whether the host must run NMS on its boxes.
        lineage: how it came to be, as strings.
        reference: the original's own predictions, to check the graph against.
    """

    graph: onnx.ModelProto
    name: str
    names: tuple[str, ...]
    preprocess: Preprocess
    nms: bool
    reference: Reference
    lineage: Mapping[str, str] = field(default_factory=dict)


def load_model(path: Path, options: ImportOptions | None = None) -> ImportedModel:
    """Reads our checkpoint, a state dict, an Ultralytics `.pt` or `.yaml`, or a plain `.onnx`.

    A `.yaml` need not exist as a file if it is bundled with Ultralytics, like `yolo11n.yaml`.

    Raises:
        CheckpointError: weights that are missing, unsafe, damaged, or of another architecture.
        ConversionError: a graph that is not a detector's, or cannot be deployed.
    """
    options = options or ImportOptions()
    if path.suffix.lower() == ".onnx":
        from converters.onnx_from_onnx import import_onnx

        return import_onnx(path, options)
    if options.head is not None:
        raise ConversionError(f"--head is for plain ONNX files, but {path} is none; leave it out")
    from converters.onnx_from_torch import import_detector, read_detector  # torch: 7 s and half a gigabyte

    found = read_detector(path, options.model, options.names, trust_pickle=options.trust_pickle)
    return import_detector(found, options.imgsz)


def square_canvas(side: int, stride: int = STRIDE) -> Preprocess:
    """The letterbox onto a square of `side` pixels.

    Raises:
        ConversionError: it is no multiple of the model's stride, or larger than a manifest allows.
    """
    if not 0 < side <= MAX_SIDE or side % stride:
        nearest = min(max(-(-side // stride), 1), MAX_SIDE // stride) * stride
        raise ConversionError(
            f"the input side must be a multiple of {stride} up to {MAX_SIDE}, but got {side}; try --imgsz {nearest}"
        )
    return Preprocess((side, side), stride=stride)
