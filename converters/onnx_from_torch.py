"""From a file of weights to the deployed ONNX graph, and the detector's own predictions to check the graph against.

With `checkpoint` all of the converters that knows torch and ultralytics.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converters.architecture import MODEL_NAMES, checked_architecture, name_of, read_architecture
from converters.checkpoint import (
    DEFAULT_IMGSZ,
    build_architecture,
    bundled_architecture,
    default_names,
    detector_from_checkpoint,
    end_to_end,
    import_ultralytics,
    load_checkpoint,
)
from converters.errors import CheckpointError, ConversionError
from converters.graph_builder import OPSET
from converters.graph_cleanup import deployed
from converters.graph_passes import (
    END_TO_END_TOP_K,
    IMAGES,
    TOP_K,
    uses_nms,
    with_embedding,
    with_end_to_end_outputs,
    with_top_k,
)
from converters.imported import ImportedModel, square_canvas
from converters.predictions import RawPredictions, Reference
from converters.ultralytics_pickle import class_names, image_size
from runtime.errors import first_line
from runtime.preprocess import STRIDE, Preprocess

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

_PREDICTIONS = "predictions"


@dataclass(frozen=True, eq=False)
class Detector:
    """A model in torch with what is known of it.

    Attributes:
        module: in evaluation mode, FP32.
        name: its architecture.
        names: class names.
        imgsz: side in pixels of the square that it was trained at.
        lineage: how it came to be, as strings.
    """

    module: DetectionModel
    name: str
    names: tuple[str, ...]
    imgsz: int
    lineage: Mapping[str, str]


def read_detector(
    path: Path, model: str | None = None, names: tuple[str, ...] | None = None, *, trust_pickle: bool = False
) -> Detector:
    """The detector of a file of weights; of a YAML, one with random weights.

    Args:
        path: our checkpoint, a state dict, an Ultralytics `.pt`, or a YAML, which may be a bundled one by its name.
        model: the architecture, where a state dict's shapes cannot tell.
        names: class names that replace the file's.
        trust_pickle: whether the file may run code.

    Raises:
        CheckpointError: weights that are missing, unsafe, damaged, or of another architecture.
    """
    try:
        if path.suffix.lower() in (".yaml", ".yml"):
            return _random_detector(path, names)
        if trust_pickle:
            return _trusted_detector(path, names)
        found = load_checkpoint(path, model)
        found = replace(found, names=names or found.names)
        return Detector(detector_from_checkpoint(found), found.model, found.names, found.imgsz, found.lineage)
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error


def _random_detector(path: Path, names: tuple[str, ...] | None) -> Detector:
    """A fresh model, the same at every call."""
    if not path.is_file() and path.stem not in MODEL_NAMES:
        raise CheckpointError(
            f"no such file: {path}; name an architecture's YAML, or one of {', '.join(MODEL_NAMES)} with .yaml"
        )
    spec = read_architecture(path) if path.is_file() else checked_architecture(bundled_architecture(path.stem), path)
    if names is not None and len(names) != spec["nc"]:
        raise CheckpointError(
            f"{len(names)} class names were given, but {path} has nc: {spec['nc']}; name exactly {spec['nc']}"
        )
    import_ultralytics()
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_architecture(spec, spec["nc"])
    return Detector(module.eval(), name_of(spec), names or default_names(spec["nc"]), DEFAULT_IMGSZ, {"weights": "random"})


def _trusted_detector(path: Path, names: tuple[str, ...] | None) -> Detector:
    """The unpickled model itself: its classes may be ones that no YAML can name."""
    module, imgsz = _load_trusted(path)
    classes = int(module.model[-1].nc)
    own = class_names(getattr(module, "names", None))
    chosen = names or (own if len(own) == classes else default_names(classes))
    if len(chosen) != classes:
        raise CheckpointError(f"{len(chosen)} class names were given, but {path} has {classes} classes; name exactly {classes}")
    broken = [key for key, value in module.state_dict().items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{len(broken)} tensors of {path} hold NaN or infinity, first {broken[0]}; train it again")
    spec = getattr(module, "yaml", None)
    lineage = {"checkpoint": path.name, "pickle": "trusted"}
    return Detector(module, name_of(spec) if isinstance(spec, dict) else path.stem, chosen, imgsz, lineage)


def _load_trusted(path: Path) -> tuple[DetectionModel, int]:
    """Unpickles a whole model and the size that it was trained at, running whatever code the file holds; nothing is downloaded or installed for it.

    Raises:
        CheckpointError: it cannot be unpickled here, or is no detector of Ultralytics' kind.
    """
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}; train one with: edge finetune, or name a file of weights")
    import_ultralytics()
    import torch
    from ultralytics.nn.modules import Detect

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=False)
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs {error.name or error}, which is not installed; install it and try again"
        ) from error
    except Exception as error:  # the file's own code may raise anything
        raise CheckpointError(
            f"{path} cannot be unpickled ({error!r}); save it again with the versions installed here"
        ) from error
    held = content if isinstance(content, dict) else {"model": content}
    model = held.get("ema") or held.get("model")
    layers = getattr(model, "model", None)
    if not isinstance(model, torch.nn.Module) or not layers or not isinstance(layers[-1], Detect):
        raise CheckpointError(f"{path} holds no model that ends in Ultralytics' Detect; only detectors can be converted")
    return end_to_end(model.float().eval()), image_size(held, model)


def import_detector(found: Detector, imgsz: int | None) -> ImportedModel:
    """A detector in torch as a deployed graph, with its own predictions beside it.

    Raises:
        ConversionError: a side that is no multiple of the model's stride, or a model that torch cannot export.
    """
    stride = int(found.module.stride.max())
    preprocess = square_canvas(imgsz or found.imgsz, max(stride, STRIDE))
    graph = onnx_from_torch(found.module, preprocess)
    reference = torch_reference(found.module, preprocess)
    return ImportedModel(graph, found.name, found.names, preprocess, uses_nms(graph), reference, found.lineage)


def onnx_from_torch(detector: DetectionModel, preprocess: Preprocess, top_k: int = TOP_K) -> onnx.ModelProto:
    """The deployed graph at batch 1: uint8 BGR in; boxes, scores, classes of the top k and an embedding out.

    Args:
        detector: in evaluation mode; left as it was.
        preprocess: gives the canvas size, colour order and scale to fold.
        top_k: how many boxes leave the graph.

    Raises:
        ConversionError: the exporter fails, or the result does not pass ONNX's checker.
    """
    exported = _export(detector, preprocess)
    features = [output.name for output in exported.graph.output[1:]]
    end_to_end = _is_end_to_end(exported)
    model = with_end_to_end_outputs(exported, _PREDICTIONS) if end_to_end else with_top_k(exported, _PREDICTIONS, top_k)
    return deployed(with_embedding(model, features), preprocess)


def torch_reference(detector: DetectionModel, preprocess: Preprocess) -> Reference:
    """The detector's own predictions on all anchors, unfused, in FP32; end-to-end heads before their own top-k."""
    import torch

    own = copy.deepcopy(detector).eval().float()
    own.model[-1].xyxy = True
    own.model[-1].postprocess = _as_they_are

    def predict(canvas: NDArray[np.uint8]) -> RawPredictions:
        seen = canvas[..., ::-1] if preprocess.color == "rgb" else canvas
        images = torch.from_numpy(np.ascontiguousarray(seen.transpose(0, 3, 1, 2))).float() * preprocess.scale
        with torch.no_grad():
            dense = own(images)[0][0].numpy()
        rows = dense if own.model[-1].end2end else dense.T  # (n, 4 + classes)
        return RawPredictions(rows[:, :4], rows[:, 4:])

    return predict


def _as_they_are(predictions: Any) -> Any:
    return predictions


def _export(detector: DetectionModel, preprocess: Preprocess) -> onnx.ModelProto:
    import torch

    class Raw(torch.nn.Module):
        """Predictions and the feature maps that the head reads."""

        def __init__(self) -> None:
            super().__init__()
            self.detector = copy.deepcopy(detector).eval().float().fuse(verbose=False)
            self.head = self.detector.model[-1]
            self.head.export, self.head.format, self.head.dynamic, self.head.xyxy = True, "onnx", False, True
            self.head.max_det = END_TO_END_TOP_K
            self.head.register_forward_pre_hook(self._remember)

        def _remember(self, _: torch.nn.Module, inputs: tuple[list[torch.Tensor], ...]) -> None:
            self.features = list(inputs[0])

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.detector(images), *self.features)

    width, height = preprocess.size_wh
    images = torch.zeros(1, 3, height, width)
    raw = Raw()
    with torch.no_grad():
        raw(images)  # builds the anchors outside the trace
    features = [f"features_{index}" for index in range(len(raw.features))]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracer warnings about the head's static shapes, which are what we want
        path = Path(folder) / "raw.onnx"
        try:
            torch.onnx.export(
                raw, (images,), path, opset_version=OPSET, dynamo=False, do_constant_folding=True,
                input_names=[IMAGES], output_names=[_PREDICTIONS, *features],
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            raise ConversionError(f"torch cannot export this model to opset {OPSET}: {first_line(error)}") from error
        return onnx.load(path)


def _is_end_to_end(exported: onnx.ModelProto) -> bool:
    dims = [dim.dim_value for dim in exported.graph.output[0].type.tensor_type.shape.dim]
    return bool(dims[-1] == 6 and dims[1] <= END_TO_END_TOP_K)
