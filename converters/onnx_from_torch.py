"""From a file of weights to the deployed ONNX graph. The only converter that imports torch and ultralytics.

A checkpoint is a `torch.save` of plain tensors, numbers and strings, read with `weights_only=True`: a pickle that
could run code is refused. Two forms are read: ours (`CHECKPOINT_FORMAT`, with architecture and class names beside the
weights) and a bare Ultralytics state dict, whose architecture is found by comparing tensor shapes.
"""

from __future__ import annotations

import io
import os
import pickle
import re
import stat
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from converters.errors import CheckpointError, ConversionError
from converters.graph_passes import (
    IMAGES,
    OPSET,
    with_embedding,
    with_end_to_end_outputs,
    with_top_k,
    with_uint8_bgr_input,
)
from runtime.errors import MissingPackageError
from runtime.files import write_atomically
from runtime.preprocess import Preprocess

if TYPE_CHECKING:
    import torch
    from ultralytics.nn.tasks import DetectionModel

CHECKPOINT_FORMAT = "edgeloop.checkpoint/1"
HELD_OUT = "held_out_"  # lineage keys of a detector's accuracy on held-out labels
# 300, the usual cap on detections, costs 0.65 points of mAP50-95 because duplicates fill it before NMS; 1000 costs 0.09
# (benchmarks/results/coco_parity.json). End-to-end heads have no duplicates and keep 300.
TOP_K = 1000
END_TO_END_TOP_K = 300
DEFAULT_IMGSZ = 640
_FEATURES = ("p3", "p4", "p5")
_SCALES = {
    "yolov5": "nsmlx",
    "yolov8": "nsmlx",
    "yolov9": "tsmce",
    "yolov10": "nsmblx",
    "yolo11": "nsmlx",
    "yolo12": "nsmlx",
    "yolo26": "nsmlx",
}
MODEL_NAMES = tuple(family + scale for family, scales in _SCALES.items() for scale in scales)


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what they are weights of.

    Attributes:
        model: architecture, one of `MODEL_NAMES`.
        names: class names; empty for a backbone without a head.
        state: tensors by Ultralytics' parameter names (`model.0.conv.weight`, ...).
        imgsz: side in pixels of the square that it was trained at.
        kind: `detector` or `backbone`.
        lineage: how it came to be, as strings (recipe, digests, seeds).
        training: optimizer, schedule and random states for `--resume`; None in a released file.
    """

    model: str
    names: tuple[str, ...]
    state: Mapping[str, torch.Tensor]
    imgsz: int = DEFAULT_IMGSZ
    kind: str = "detector"
    lineage: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None


def import_ultralytics() -> None:
    """Imports ultralytics so that it neither probes the network nor writes into the user's home.

    Raises:
        MissingPackageError: it is not installed.
    """
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    if "YOLO_CONFIG_DIR" not in os.environ:
        os.environ["YOLO_CONFIG_DIR"] = _private_folder()
    threads = os.environ.get("OMP_NUM_THREADS")
    try:
        # torch first: ultralytics sets OMP_NUM_THREADS to 1, which would leave torch, and our children, a single core.
        import torch  # noqa: F401
        import ultralytics.utils  # noqa: F401  heavy (6 s) and AGPL: never at import of ours
    except ImportError as error:
        raise MissingPackageError("ultralytics", "train") from error
    if threads is None:
        os.environ.pop("OMP_NUM_THREADS", None)


def _private_folder() -> str:
    """A folder for ultralytics' settings that no other user could have prepared."""
    folder = Path(tempfile.gettempdir()) / f"edgeloop-ultralytics-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return str(folder) if ours else tempfile.mkdtemp(prefix="edgeloop-ultralytics-")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint atomically: a kill leaves the old file or the new one."""
    import torch

    data = io.BytesIO()
    content = {
        "format": CHECKPOINT_FORMAT, "model": checkpoint.model, "names": list(checkpoint.names), "state": dict(checkpoint.state),
        "imgsz": checkpoint.imgsz, "kind": checkpoint.kind, "lineage": dict(checkpoint.lineage), "training": checkpoint.training,
    }  # fmt: skip
    torch.save(content, data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data.getvalue())
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written: {error.strerror}; free some space or choose another folder"
        ) from error


def load_checkpoint(path: Path, model: str | None = None) -> Checkpoint:
    """Reads a checkpoint of ours or a bare state dict; `model` names the architecture where shapes alone cannot tell.

    Raises:
        CheckpointError: no such file, a pickle that needs code to load, or an unknown architecture.
        MissingPackageError: torch is not installed.
    """
    content = _read_tensors(path)
    import torch  # it is there: the line before has used it

    if content.get("format") == CHECKPOINT_FORMAT:
        try:
            if not all(isinstance(value, torch.Tensor) for value in dict(content["state"]).values()):
                raise TypeError("state holds more than tensors")
            if model is not None and model != content["model"]:
                raise CheckpointError(f"{path} is of {content['model']}, but --model says {model}; leave it out")
            return Checkpoint(
                str(content["model"]), tuple(content["names"]), content["state"], int(content["imgsz"]),
                str(content["kind"]), {str(k): str(v) for k, v in dict(content["lineage"]).items()}, content["training"],
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is an incomplete checkpoint ({error!r}); train it again") from error
    state = {key: value.float() if value.is_floating_point() else value for key, value in content.items()}
    found = model or _matching_model(path, state)
    classes = _class_count(path, state)
    return Checkpoint(found, _default_names(classes), state, lineage={"checkpoint": path.name})


def _read_tensors(path: Path) -> dict[str, Any]:
    try:
        import torch  # an extra; 7 s and half a gigabyte
    except ImportError as error:
        raise MissingPackageError("torch", "train") from error
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}; train one with: edge finetune, or name a file of weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is told below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise CheckpointError(
            f"{path} cannot be read as plain tensors: it is damaged, or a pickled model whose loading could run code; "
            "save its state_dict() with torch.save and use that"
        ) from error
    tensors = isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items())
    if not isinstance(content, dict) or not content or not (tensors or content.get("format") == CHECKPOINT_FORMAT):
        kind = content.get("format", "an unknown layout") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} holds {kind}, expected {CHECKPOINT_FORMAT} or a state dict of tensors; convert it with its own tool"
        )
    return content


def build_model(name: str, classes: int) -> DetectionModel:
    """An Ultralytics detection model with fresh weights.

    Raises:
        CheckpointError: unknown name.
    """
    if name not in MODEL_NAMES:
        raise CheckpointError(f"unknown model {name!r}; known are {', '.join(MODEL_NAMES)}")
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(f"{name}.yaml", nc=classes, verbose=False)
    if getattr(model.model[-1], "one2one_cv2", None) is not None:
        model.end2end = True  # v10 and 26: their one-to-one head needs no NMS
    return model


def detector_from_checkpoint(checkpoint: Checkpoint) -> DetectionModel:
    """The model of a checkpoint, in evaluation mode; every tensor must fit.

    Raises:
        CheckpointError: a backbone without head, or tensors of another architecture.
    """
    if checkpoint.kind != "detector":
        raise CheckpointError(
            f"this checkpoint is a {checkpoint.kind} of {checkpoint.model}; fine-tune it first with: edge finetune --init"
        )
    model = build_model(checkpoint.model, len(checkpoint.names))
    own = model.state_dict()
    known = _head_rows(checkpoint.state)
    if known is not None and known != len(checkpoint.names):
        raise CheckpointError(
            f"{len(checkpoint.names)} class names were given, but the weights have {known} classes; name exactly {known}"
        )
    wrong = [key for key in own if key not in checkpoint.state or checkpoint.state[key].shape != own[key].shape]
    extra = [key for key in checkpoint.state if key not in own]
    if wrong or extra:
        raise CheckpointError(
            f"the checkpoint does not fit {checkpoint.model}: {len(wrong)} of {len(own)} tensors are missing or of another shape "
            f"({', '.join(wrong[:3])}), {len(extra)} are unknown; it is of another architecture, name the right one with --model"
        )
    broken = [key for key, value in checkpoint.state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{len(broken)} tensors of the checkpoint hold NaN or infinity, first {broken[0]}; train it again"
        )
    model.load_state_dict(dict(checkpoint.state), strict=True)
    model.names = dict(enumerate(checkpoint.names))
    return model.eval()


def onnx_from_torch(detector: DetectionModel, preprocess: Preprocess, batch: int = 1, top_k: int = TOP_K) -> onnx.ModelProto:
    """The deployed graph: uint8 BGR in; boxes, scores, classes of the top k and an embedding out.

    Args:
        detector: in evaluation mode; left as it was.
        preprocess: gives the canvas size, colour order and scale to fold.
        batch: static batch size.
        top_k: how many boxes leave the graph.

    Raises:
        ConversionError: the exporter fails, or the result does not pass ONNX's checker.
    """
    exported = _export(detector, preprocess, batch)
    end_to_end = _is_end_to_end(exported)
    model = with_end_to_end_outputs(exported, "predictions") if end_to_end else with_top_k(exported, "predictions", top_k)
    model = with_embedding(model, _FEATURES)
    model = with_uint8_bgr_input(model, preprocess.scale, swap_channels=preprocess.color == "rgb")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"the exported graph is not valid ONNX: {error}; please report the model's name") from error
    return model


def uses_nms(model: onnx.ModelProto) -> bool:
    """Whether the host must run NMS on this graph's boxes: all but end-to-end heads."""
    return any(node.name.startswith("edgeloop/topk") for node in model.graph.node)


def _export(detector: DetectionModel, preprocess: Preprocess, batch: int) -> onnx.ModelProto:
    import copy

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
    images = torch.zeros(batch, 3, height, width)
    raw = Raw()
    raw(images)  # builds the anchors outside the trace
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracer warnings about the head's static shapes, which are what we want
        path = Path(folder) / "raw.onnx"
        torch.onnx.export(
            raw, (images,), path, opset_version=OPSET, dynamo=False, do_constant_folding=True,
            input_names=[IMAGES], output_names=["predictions", *_FEATURES],
        )  # fmt: skip
        return onnx.load(path)


def _is_end_to_end(exported: onnx.ModelProto) -> bool:
    dims = [dim.dim_value for dim in exported.graph.output[0].type.tensor_type.shape.dim]
    return bool(dims[-1] == 6 and dims[1] <= END_TO_END_TOP_K)


def _head_rows(state: Mapping[str, torch.Tensor]) -> int | None:
    """Rows of the last class convolution of the head (`model.23.cv3.0.2.weight`)."""
    rows = [
        value.shape[0]
        for key, value in state.items()
        if re.fullmatch(r"model\.\d+\.cv3\.0\.2\.weight", key) and value.ndim == 4
    ]
    return int(rows[0]) if len(rows) == 1 else None


def _class_count(path: Path, state: Mapping[str, torch.Tensor]) -> int:
    rows = _head_rows(state)
    if rows is None:
        raise CheckpointError(
            f"{path} has no YOLO detection head (no tensor model.N.cv3.0.2.weight); name a detector of {', '.join(_SCALES)}"
        )
    return rows


def _matching_model(path: Path, state: Mapping[str, torch.Tensor]) -> str:
    """The architecture whose tensors have these names and shapes; a look at its YAML spares building most of them."""
    classes = _class_count(path, state)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    stem = next(value for value in state.values() if value.ndim == 4)  # there is one: the class convolution was found
    layers = 1 + max(int(key.split(".")[1]) for key in state if re.match(r"model\.\d+\.", key))
    for name in MODEL_NAMES:
        if _outline(name) != (layers, stem.shape[0]):
            continue
        own = build_model(name, classes).state_dict()
        if {key: tuple(value.shape) for key, value in own.items()} == shapes:
            return name
    raise CheckpointError(
        f"{path} fits none of the known architectures ({', '.join(_SCALES)}); if it is one of them, its tensors were changed"
    )


def _outline(name: str) -> tuple[int, int]:
    """Number of layers and width of the first convolution, as the architecture's YAML gives them."""
    import_ultralytics()
    from ultralytics.nn.tasks import yaml_model_load

    spec = yaml_model_load(f"{name}.yaml")
    scales = spec.get("scales") or {"": (1.0, 1.0, float("inf"))}
    _, width, most = scales.get(spec["scale"]) or next(iter(scales.values()))
    channels = min(next(layer[3][0] for layer in spec["backbone"] if layer[3]), most) * width
    return len(spec["backbone"]) + len(spec["head"]), -(-int(channels) // 8) * 8


def _default_names(classes: int) -> tuple[str, ...]:
    """COCO's names for 80 classes, else `class_0` and so on."""
    if classes != 80:
        return tuple(f"class_{index}" for index in range(classes))
    import_ultralytics()
    from ultralytics.utils import ROOT, YAML

    return tuple(YAML.load(ROOT / "cfg/datasets/coco.yaml")["names"].values())
