"""Files of weights and the models that they are weights of.

A checkpoint is read with `weights_only=True`: a pickle that could run code is refused. Three forms are read: ours
(`CHECKPOINT_FORMAT`, with architecture and class names beside the weights), a bare Ultralytics state dict, whose
architecture is found by comparing tensor shapes, and the pickled model that Ultralytics itself writes. A ResNet's weights
(torchvision, timm, VISSL) are the backbone of a model with that ResNet.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import re
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.architecture import (
    MODEL_NAMES,
    SCALES,
    checked_architecture,
    name_of,
    same_network,
)
from converters.errors import CheckpointError
from converters.resnet import BATCH_NORM_EPS, RESNET_MODELS, STEM, resnet_architecture, resnet_weights
from converters.ultralytics_pickle import PickledModel, StandIn, read_pickled, stand_ins
from runtime.errors import MissingPackageError
from runtime.files import write_atomically

if TYPE_CHECKING:
    import torch
    from ultralytics.nn.tasks import DetectionModel

CHECKPOINT_FORMAT = "edgeloop.checkpoint/1"
HELD_OUT = "held_out_"  # lineage keys of a detector's accuracy on held-out labels
DEFAULT_IMGSZ = 640
_NO_WEIGHTS = (".onnx", ".engine", ".plan", ".yaml", ".yml", ".json", ".txt", ".jpg", ".png")
_ANCHOR_HEAD = re.compile(r"model\.[1-9]\d*\.m\.0\.weight")


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what they are weights of.

    Attributes:
        model: architecture, one of `MODEL_NAMES` or the name of `architecture`.
        names: class names; empty for a backbone without a head.
        state: tensors by Ultralytics' parameter names (`model.0.conv.weight`, ...).
        imgsz: side in pixels of the square that it was trained at.
        kind: `detector`, or the part of one that was pretrained: `backbone`, `neck` or `localizer`.
        lineage: how it came to be, as strings (recipe, digests, seeds).
        training: optimizer, schedule and random states for `--resume`; None in a released file.
        architecture: the YAML of a model that is not in `MODEL_NAMES`.
    """

    model: str
    names: tuple[str, ...]
    state: Mapping[str, torch.Tensor]
    imgsz: int = DEFAULT_IMGSZ
    kind: str = "detector"
    lineage: Mapping[str, str] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None
    architecture: Mapping[str, Any] | None = None


def import_ultralytics() -> None:
    """Imports ultralytics so that it neither probes the network nor writes into the user's home.

    Raises:
        MissingPackageError: it is not installed.
    """
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("ULTRALYTICS_SAFE_LOAD", "true")  # a second lock: it builds models without eval()
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
        "architecture": None if checkpoint.architecture is None else dict(checkpoint.architecture),
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
    """Reads a checkpoint of ours, a bare state dict, or an Ultralytics `.pt`, running no code that it holds.

    Args:
        path: the file.
        model: the architecture, where shapes alone cannot tell.

    Raises:
        CheckpointError: no such file, a pickle that needs code of its own to load, or an unknown architecture.
        MissingPackageError: torch is not installed.
    """
    found = _loaded(path, model)
    odd = next(
        (key for key, value in found.state.items() if value.is_floating_point() and not bool(value.isfinite().all())), None
    )
    if odd is not None:
        raise CheckpointError(f"{path} holds NaN or infinity in {odd}; a training failed there, take weights from before")
    return found


def _loaded(path: Path, model: str | None) -> Checkpoint:
    content = read_tensors(path)
    if isinstance(content, StandIn) or any(isinstance(content.get(key), StandIn) for key in ("ema", "model")):
        return _from_pickled(path, read_pickled(path, content), model)
    import torch  # it is there: reading has used it

    if content.get("format") == CHECKPOINT_FORMAT:
        return _from_ours(path, content, model)
    try:
        resnet = resnet_weights(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path} holds {error}") from error
    if resnet:
        name, tensors = resnet
        if not all(isinstance(value, torch.Tensor) for value in tensors.values()):
            raise CheckpointError(f"{path} holds a ResNet with layers that are no tensors; save its state_dict() instead")
        if model not in (None, name):
            raise CheckpointError(f"{path} holds the backbone of {name}, but --model says {model}; name the same")
        return Checkpoint(name, (), _with_counters(tensors), kind="backbone", lineage={"checkpoint": path.name})
    if not content or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content.items()):
        raise CheckpointError(
            f"{path} holds {content.get('format', 'an unknown layout')}, expected {CHECKPOINT_FORMAT}, a state dict of tensors "
            "or an Ultralytics .pt; convert it with its own tool"
        )
    state = {key: value.float() if value.is_floating_point() else value for key, value in content.items()}
    found = model or _matching_model(path, state)
    classes = _class_count(path, state)
    return Checkpoint(found, default_names(classes), state, lineage={"checkpoint": path.name})


def _with_counters(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole floats, and zero for batch norms' counters, which older files leave out."""
    import torch

    counters = {
        key.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for key in state if key.endswith("running_mean")
    }
    return {**counters, **{key: _plain(value) for key, value in state.items()}}


def _from_ours(path: Path, content: Mapping[str, Any], model: str | None) -> Checkpoint:
    import torch

    try:
        if not all(isinstance(value, torch.Tensor) for value in dict(content["state"]).values()):
            raise TypeError("state holds more than tensors")
        if not all(isinstance(name, str) for name in content["names"]):
            raise TypeError("names holds more than strings")
        if model is not None and model != content["model"]:
            raise CheckpointError(f"{path} is of {content['model']}, but --model says {model}; leave it out")
        spec = content.get("architecture")
        return Checkpoint(
            str(content["model"]), tuple(content["names"]), content["state"], int(content["imgsz"]), str(content["kind"]),
            {str(k): str(v) for k, v in dict(content["lineage"]).items()},
            content["training"], None if spec is None else checked_architecture(spec, path),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is an incomplete checkpoint ({error!r}); train it again") from error


def _from_pickled(path: Path, pickled: PickledModel, model: str | None) -> Checkpoint:
    """A checkpoint from the parts of a pickled model; a bundled architecture goes by its name alone."""
    if not pickled.task_class.endswith("DetectionModel"):
        raise CheckpointError(f"{path} is a {pickled.task_class}, expected a DetectionModel; only detectors can be converted")
    import torch

    spec = checked_architecture(pickled.architecture, path)
    name = name_of(spec)
    bundled = name in MODEL_NAMES and same_network(spec, checked_architecture(bundled_architecture(name), name))
    if model is not None and model != name:
        raise CheckpointError(f"{path} is of {name}, but --model says {model}; leave it out")
    if not all(isinstance(value, torch.Tensor) for value in pickled.state.values()):
        raise CheckpointError(f"{path} holds parameters that are no tensors; save it with Ultralytics' model.save()")
    state = {key: _plain(value) for key, value in pickled.state.items()}
    names = pickled.names if len(pickled.names) == spec["nc"] else default_names(spec["nc"])
    lineage = {"checkpoint": path.name}
    return Checkpoint(name, names, state, pickled.imgsz, lineage=lineage, architecture=None if bundled else spec)


def _plain(value: torch.Tensor) -> torch.Tensor:
    return value.detach().float() if value.is_floating_point() else value.detach()


def read_tensors(path: Path) -> Any:
    """What `torch.load` gives when it may only build tensors, containers and stand-ins: a mapping, or a stand-in of a model.

    Raises:
        CheckpointError: no such file, or what it holds is no such thing.
        MissingPackageError: torch is not installed.
    """
    try:
        import torch  # an extra; 7 s and half a gigabyte
    except ImportError as error:
        raise MissingPackageError("torch", "train") from error
    if not path.is_file():
        kind = "is a folder, not a model" if path.is_dir() else "is no file"
        raise CheckpointError(f"no such checkpoint: {path} {kind}; train one with: edge finetune, or name a file of weights")
    if path.suffix in _NO_WEIGHTS:
        raise CheckpointError(f"{path} is no file of weights, by its name; name a .pt")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read is told below
            with _nothing_registered(), torch.serialization.safe_globals(stand_ins(path, _names_in(path))):
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
            "save its state_dict() with torch.save and use that (edge-convert also takes --trust-pickle, if you trust its maker)"
        ) from error
    if not isinstance(content, (dict, StandIn)):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected {CHECKPOINT_FORMAT}, a state dict of tensors or an Ultralytics .pt; "
            "convert it with its own tool"
        )
    return content


@contextlib.contextmanager
def _nothing_registered() -> Iterator[None]:
    """Forgets for a while the classes that others allow torch to build; ultralytics leaves its own there, once it has loaded a file."""
    import torch

    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(registered)


def _names_in(path: Path) -> list[str]:
    """The names beyond plain tensors that a file asks for; none in a file that is no zip, whose reader then refuses it."""
    import torch

    with contextlib.suppress(ValueError):
        names: list[str] = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
        return names
    return []


def build_model(name: str, classes: int) -> DetectionModel:
    """An Ultralytics detection model with fresh weights.

    Raises:
        CheckpointError: unknown name.
    """
    if name not in MODEL_NAMES:
        raise CheckpointError(f"unknown model {name!r}; known are {', '.join(MODEL_NAMES)}")
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    model = end_to_end(DetectionModel(bundled_architecture(name), nc=classes, verbose=False))
    if name in RESNET_MODELS:
        for module in model.model[0].modules():
            if hasattr(module, "eps"):
                module.eps = BATCH_NORM_EPS  # Ultralytics sets YOLO's, and weights from elsewhere would mean something else
    return model


def build_architecture(spec: Mapping[str, Any], classes: int) -> DetectionModel:
    """A detection model with fresh weights from an architecture.

    Raises:
        CheckpointError: an architecture that is not safe to build, or layers that do not fit each other.
    """
    spec = checked_architecture(spec, name_of(spec))  # the last door before code of ultralytics that trusts what it is given
    import_ultralytics()
    from ultralytics.nn.tasks import DetectionModel

    try:
        return end_to_end(DetectionModel(spec, nc=classes, verbose=False))
    except Exception as error:  # layers of any kind, given any arguments
        raise CheckpointError(f"{name_of(spec)} cannot be built: {error}; correct its YAML") from error


def end_to_end(model: DetectionModel) -> DetectionModel:
    """Selects the one-to-one head of v10 and 26, which needs no NMS, where there is one."""
    if getattr(model.model[-1], "one2one_cv2", None) is not None:
        model.end2end = True
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
    known = _head_rows(checkpoint.state)
    if known is not None and known != len(checkpoint.names):
        raise CheckpointError(
            f"{len(checkpoint.names)} class names were given, but the weights have {known} classes; name exactly {known}"
        )
    model = _fresh(checkpoint.model, checkpoint.architecture, len(checkpoint.names))
    own = model.state_dict()
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


def _fresh(name: str, spec: Mapping[str, Any] | None, classes: int) -> DetectionModel:
    return build_model(name, classes) if spec is None else build_architecture(spec, classes)


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
    if any(_ANCHOR_HEAD.fullmatch(key) for key in state):
        raise CheckpointError(
            f"{path} has the anchor head of the YOLOv5 repository, which Ultralytics' package does not build; "
            "export it to ONNX with that repository's export.py, and convert the ONNX with --head yolov5"
        )
    if rows is None:
        raise CheckpointError(
            f"{path} has no YOLO detection head (no tensor model.N.cv3.0.2.weight); name a detector of {', '.join(SCALES)}"
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
        f"{path} fits none of the known architectures ({', '.join(SCALES)}); if it is one of them, its tensors were changed"
    )


def bundled_architecture(name: str) -> dict[str, Any]:
    """The YAML of a known architecture, as Ultralytics ships it: its own search would prefer a file of the working folder."""
    import_ultralytics()
    from ultralytics.nn.tasks import guess_model_scale
    from ultralytics.utils import ROOT, YAML

    known = {path.stem: path for path in (ROOT / "cfg/models").rglob("*.yaml")}
    if name in RESNET_MODELS:
        spec = resnet_architecture(name, YAML.load(known["yolo11"])["scales"])
    else:
        spec = YAML.load(known.get(name) or known[name[:-1]])  # yolov9t has its own, yolo11n is a scale of yolo11
    return {**spec, "scale": guess_model_scale(name), "yaml_file": f"{name}.yaml"}


def _outline(name: str) -> tuple[int, int]:
    """Number of layers and width of the first convolution, as the architecture's YAML gives them."""
    spec = bundled_architecture(name)
    if name in RESNET_MODELS:
        return len(spec["backbone"]) + len(spec["head"]), STEM
    scales = spec.get("scales") or {"": (1.0, 1.0, float("inf"))}
    _, width, most = scales.get(spec["scale"]) or next(iter(scales.values()))
    channels = min(next(layer[3][0] for layer in spec["backbone"] if layer[3]), most) * width
    return len(spec["backbone"]) + len(spec["head"]), -(-int(channels) // 8) * 8


def default_names(classes: int) -> tuple[str, ...]:
    """COCO's names for 80 classes, else `class_0` and so on."""
    if classes != 80:
        return tuple(f"class_{index}" for index in range(classes))
    import_ultralytics()
    from ultralytics.utils import ROOT, YAML

    return tuple(YAML.load(ROOT / "cfg/datasets/coco.yaml")["names"].values())
