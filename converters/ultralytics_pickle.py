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
# Modules may share children, so a small file can name more than any memory holds. YOLOv9e has 3600 entries of 51 characters.
_MAX_ENTRIES = 100_000
_MAX_NAME = 500
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
                "if you trust whoever made the file, edge-convert takes --trust-pickle"
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
    names = class_names(getattr(model, "names", None))
    return PickledModel(type(model).__name__, _tensors(path, model), architecture, names, image_size(held, model))


def class_names(names: object) -> tuple[str, ...]:
    """Names in a model's own order, of a list or of a dictionary by number; none where it has others than text or numbers."""
    values = list(names.values()) if isinstance(names, dict) else names if isinstance(names, (list, tuple)) else []
    return tuple(str(name) for name in values) if all(isinstance(name, (str, int)) for name in values) else ()


def _tensors(path: Path, model: StandIn) -> dict[str, Any]:
    """The persistent tensors of a model's modules, named as `state_dict()` names them: a shared module under all its names."""
    found: dict[str, Any] = {}
    entries = 0
    open_modules = [("", model)]
    while open_modules:
        prefix, module = open_modules.pop()
        unsaved = getattr(module, "_non_persistent_buffers_set", None)
        for field in ("_parameters", "_buffers", "_modules"):
            for key, value in _items(module, field):
                entries += 1
                if entries > _MAX_ENTRIES or len(prefix) + len(key) > _MAX_NAME:
                    raise CheckpointError(f"{path} nests modules without end and is no YOLO; name another file")
                if isinstance(value, StandIn) and field == "_modules":
                    open_modules.append((f"{prefix}{key}.", value))
                elif value is not None and field != "_modules" and not (isinstance(unsaved, set) and key in unsaved):
                    found[prefix + key] = value
    return {key: value for key, value in found.items() if key.startswith("model.")}


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
