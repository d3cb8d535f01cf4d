"""Models of timm by name, with weights from a local file; nothing is fetched, and nothing that the file holds is run."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from converters.checkpoint import read_tensors
from converters.errors import CheckpointError
from edge.errors import TrainingError
from runtime.errors import MissingPackageError, first_line

# Where timm's training and others keep the weights in a file of more, the average first.
_PLACES = ("state_dict_ema", "model_ema", "state_dict", "model")
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")  # of torch.compile and data parallelism, in either order
_COUNTER = "num_batches_tracked"  # batch norms' counters, which older files leave out


def timm_model(name: str, path: Path) -> Any:
    """A model with the weights of a file.

    Args:
        name: of timm's list, with or without tag; not of a hub, since that would be fetched.
        path: its weights by timm's names or its authors', in a `.safetensors` or a torch file of tensors.

    Raises:
        TrainingError: timm has no such model.
        CheckpointError: the file cannot be read, or is of another model.
        MissingPackageError: timm or safetensors is not installed.
    """
    try:
        import timm  # an extra; 5 s
    except ImportError as error:
        raise MissingPackageError("timm", "train") from error
    known = sorted({*timm.list_models(), *timm.list_models(pretrained=True)})
    if name not in known:
        raise TrainingError(f"timm has no model {name!r}; similar ones are {', '.join(similar(name, known))}")
    model = timm.create_model(name, pretrained=False)
    _fill(model, weights_of(path), path, name)
    return model


def similar(name: str, known: Sequence[str]) -> list[str]:
    """The closest five of those that share the longest word: `dinov2_vits14` is spelt like no DINOv2 of timm."""
    longest = max(re.split(r"[\W_]", name), key=len)
    return get_close_matches(name, [each for each in known if longest in each] or known, 5, cutoff=0)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` or torch file by name; nothing that the file holds is run.

    Raises:
        CheckpointError: no such file, or it holds no state dict.
        MissingPackageError: safetensors is not installed.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_tensors(path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in _PLACES if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds more than tensors by name; save its state_dict() with torch.save and use that")
    return {_unwrapped(str(key)): value for key, value in content.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise MissingPackageError("safetensors", "train") from error
    if not path.is_file():
        raise CheckpointError(f"no such file: {path}; name the teacher's weights")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({first_line(error)}); fetch it again") from error


def _unwrapped(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.removeprefix(wrapper)
    return key


def _fill(model: Any, state: Mapping[str, torch.Tensor], path: Path, name: str) -> None:
    """Puts weights into a model; its head, which no map depends on, may have other classes or be missing.

    Raises:
        CheckpointError: tensors of another model, or NaN or infinity in them.
    """
    # How timm itself reads the files of a family's authors (DINOv2, ConvNeXt), whose names are not always its own.
    adapted = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        found: dict[str, Any] = dict(adapted(dict(state), model) if adapted else state)
    except Exception as error:  # it is made for files that fit
        raise CheckpointError(_misfit(path, name, f"timm cannot take them apart: {first_line(error)}")) from error
    heads = _heads(model.pretrained_cfg.get("classifier") or ())
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(heads)}
    kept = {key: value for key, value in found.items() if not key.startswith(heads)}
    wrong = [
        key
        for key, value in own.items()
        if (key not in kept and not key.endswith(_COUNTER)) or (key in kept and kept[key].shape != value.shape)
    ]
    extra = [key for key in kept if key not in own]
    if wrong or extra:
        told = f"{len(wrong)} of {len(own)} tensors are missing or of another shape, {len(extra)} are unknown"
        raise CheckpointError(_misfit(path, name, f"{told}, first {(wrong + extra)[0]}"))
    broken = next((key for key, value in kept.items() if not bool(value.isfinite().all())), None)
    if broken is not None:
        raise CheckpointError(f"{path} holds NaN or infinity in {broken}; fetch it again, or take other weights")
    model.load_state_dict(kept, strict=False)


def _heads(classifiers: str | Sequence[str]) -> tuple[str, ...]:
    """Prefixes of the tensors beside timm's classifiers, of which a model may have two (`head.fc`, `head_dist`)."""
    names = [classifiers] if isinstance(classifiers, str) else classifiers
    return tuple(f"{name.split('.')[0]}." for name in names)


def _misfit(path: Path, name: str, why: str) -> str:
    return f"the weights in {path} are not {name}'s ({why}); give the name of the model that they are of with --teacher-model"
