"""What an Ultralytics `.pt` holds, read without running any of its code, nor Ultralytics'.

Such a file is the pickle of a whole model. Every class that it names is replaced by an inert stand-in that only keeps
what it is given; torch's `weights_only` reader, which follows no other name, does the rest. Of the stand-ins' tree we
take the tensors, the architecture's YAML, the class names and the image size, and build the model from those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.errors import CheckpointError

# Packages whose names a pickled YOLO is expected to hold. Any other name means that its own code would have to run.
_PACKAGES = frozenset(
    {"ultralytics", "torch", "torchvision", "numpy", "pathlib", "collections", "types", "datetime", "_codecs"}
)
_BUILTINS = frozenset({"builtins.getattr", "builtins.set", "builtins.slice"})
_MAX_DEPTH = 64  # of modules in modules; YOLO26 has nine
_DEFAULT_IMGSZ = 640


class StandIn:
    """Takes the place of a class that a pickle names; keeps its state and does nothing."""

    def __new__(cls, *_: object, **__: object) -> StandIn:
        """Forgets its arguments."""
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update({key: value for key, value in state.items() if isinstance(key, str)})


@dataclass(frozen=True)
class PickledModel:
    """The parts of a pickled YOLO.

    Attributes:
        task_class: name of the model's class, `DetectionModel` for a detector.
        state: tensors by parameter name.
        architecture: the YAML that it was built from.
        names: class names.
        imgsz: side in pixels of the square that it was trained at.
    """

    task_class: str
    state: Mapping[str, Any]
    architecture: Mapping[str, Any]
    names: tuple[str, ...]
    imgsz: int


def stand_ins(path: Path, needed: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """A stand-in for every name that a pickle needs beyond plain tensors.

    Raises:
        CheckpointError: a name that no YOLO's pickle needs.
    """
    found: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    for name in sorted(needed):
        package = name.partition(".")[0]
        if package == "models":
            raise CheckpointError(
                f"{path} is a pickle of the YOLOv5 repository ({name}), whose anchor head Ultralytics' package does not build; "
                "export it to ONNX with that repository's export.py, and convert the ONNX with --head yolov5"
            )
        if package not in _PACKAGES and name not in _BUILTINS:
            raise CheckpointError(
                f"{path} names {name}, and reading that would run code from outside torch and ultralytics; "
                "if you trust whoever made the file, add --trust-pickle"
            )
        found.append((type(name.rpartition(".")[2], (StandIn,), {}), name))
    return found


def read_pickled(path: Path, content: object) -> PickledModel:
    """Takes the parts of a model out of what was unpickled with stand-ins.

    Raises:
        CheckpointError: there is no model in it, or its parts are not what a YOLO's are.
    """
    held = content if isinstance(content, dict) else {"model": content}
    model = held.get("ema") or held.get("model")
    if not isinstance(model, StandIn):
        raise CheckpointError(f"{path} holds no pickled model under 'ema' or 'model'; save it with Ultralytics' model.save()")
    architecture = getattr(model, "yaml", None)
    if not isinstance(architecture, dict):
        raise CheckpointError(f"{path} holds no YAML of its architecture; save it with Ultralytics' model.save()")
    names = getattr(model, "names", None)
    values = list(names.values()) if isinstance(names, dict) else names if isinstance(names, list) else []
    state = _tensors(path, model)
    return PickledModel(type(model).__name__, state, architecture, tuple(str(name) for name in values), image_size(held, model))


def _tensors(path: Path, module: StandIn, prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """The persistent tensors of a module and its children, named as `state_dict()` names them."""
    if depth > _MAX_DEPTH:
        raise CheckpointError(f"{path} nests modules more than {_MAX_DEPTH} deep and is no YOLO; name another file")
    unsaved = getattr(module, "_non_persistent_buffers_set", ())
    found = {}
    for field in ("_parameters", "_buffers"):
        for key, value in _items(module, field):
            if value is not None and key not in unsaved:
                found[prefix + key] = value
    for key, child in _items(module, "_modules"):
        if isinstance(child, StandIn):
            found.update(_tensors(path, child, f"{prefix}{key}.", depth + 1))
    return {key: value for key, value in found.items() if depth or key.startswith("model.")}


def _items(module: StandIn, field: str) -> list[tuple[str, Any]]:
    content = getattr(module, field, None)
    return [(str(key), value) for key, value in content.items()] if isinstance(content, dict) else []


def image_size(held: Mapping[str, Any], model: object) -> int:
    """Of the training arguments; Ultralytics' default where they say nothing."""
    for arguments in (held.get("train_args"), getattr(model, "args", None)):
        values = arguments if isinstance(arguments, dict) else getattr(arguments, "__dict__", {})
        size = values.get("imgsz")
        if isinstance(size, int) and size > 0:
            return size
    return _DEFAULT_IMGSZ
