"""Self-supervised methods, one file each: a module around a `Trunk` whose `forward` takes a batch of views and gives a loss.

Every file has the same shape, `simclr.py` is the one to read first.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edge.errors import TrainingError
from runtime.errors import MissingPackageError

if TYPE_CHECKING:
    import torch

    from edge.trunk import Trunk
    from edge.yolo import Part


@dataclass(frozen=True, slots=True)
class Settings:
    """What a method may depend on beside the trunk.

    Attributes:
        imgsz: side of the views in pixels.
        batch: images a step.
        images: in the whole pool.
        steps: of the whole run.
        upright: whether a scene has an up and a down.
        anchor: weight of staying near the weights that the run starts from, for the method that does; 0 for none.
        teacher: weights to distil, for the method that does.
        teacher_model: timm's name of the model that they are of; empty for a YOLO's checkpoint.
    """

    imgsz: int
    batch: int
    images: int
    steps: int
    upright: bool = False
    teacher: Path | None = None
    anchor: float = 0.0
    teacher_model: str = ""


class Views(Protocol):
    """Makes what a method looks at; may run in another process."""

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        """uint8 (h, w, 3) BGR and all that is random → tensors, which are stacked over the batch."""
        ...


class Method(Protocol):
    """A `torch.nn.Module` with a trunk.

    Attributes:
        trunk: what is trained and kept; all else of the method is thrown away.
        views: see `Views`.
    """

    trunk: Trunk
    views: Views

    def __call__(self, *views: torch.Tensor) -> torch.Tensor:
        """The loss of a batch, a scalar."""
        ...

    def after_step(self, step: int) -> None:
        """What follows the optimizer's step of that number (momentum encoders, phases)."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of a method before it is built.

    Attributes:
        class_name: in the file of the method's name in this folder.
        parts: that it can train, the largest first.
        is_anchored: whether it can stay near the weights that the run starts from.
        is_masked: whether its layers do something else while they look at what is hidden.
    """

    class_name: str
    parts: tuple[Part, ...] = ("neck", "backbone")
    is_anchored: bool = False
    is_masked: bool = False


# By the names of their files.
METHODS: dict[str, Kind] = {
    "dense": Kind("Dense", is_anchored=True),
    "simclr": Kind("SimCLR"),
    "moco": Kind("MoCo"),
    "vicreg": Kind("VICReg"),
    "mae": Kind("MaskedModelling", ("backbone",), is_masked=True),
    "rotation": Kind("Rotation"),
    "jigsaw": Kind("Jigsaw"),
    "hybrid": Kind("Hybrid", is_anchored=True, is_masked=True),
    "distill": Kind("Distill", ("neck",)),
    "cutpaste": Kind("CutPaste", ("localizer", "neck")),
}


def kind_of(name: str) -> Kind:
    """Of the method of that name.

    Raises:
        TrainingError: unknown name.
    """
    if name not in METHODS:
        raise TrainingError(f"unknown method {name!r}; the methods are {', '.join(METHODS)}")
    return METHODS[name]


def build_method(name: str, trunk: Trunk, settings: Settings) -> torch.nn.Module:
    """A method around a trunk; it satisfies `Method`.

    Raises:
        TrainingError: unknown name, or what the method needs is not given.
        MissingPackageError: a package of the train extra is not installed.
    """
    kind = kind_of(name)
    try:
        module = import_module(f"edge.methods.{name}")  # torch and lightly come with it
        return cast("torch.nn.Module", getattr(module, kind.class_name)(trunk, settings))
    except ImportError as error:
        raise MissingPackageError(error.name or "lightly", "train") from error
