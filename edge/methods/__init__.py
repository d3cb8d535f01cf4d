"""Self-supervised methods, one file each: a module around a `Trunk` whose `forward` takes a batch of views and gives a loss.

Every file has the same shape, `simclr.py` is the one to read first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from edge.errors import TrainingError
from runtime.errors import MissingPackageError

if TYPE_CHECKING:
    import torch

    from edge.trunk import Trunk

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for its newest version


@dataclass(frozen=True, slots=True)
class Settings:
    """What a method may depend on beside the trunk.

    Attributes:
        imgsz: side of the views in pixels.
        batch: images a step.
        images: in the whole pool.
        steps: of the whole run.
        upright: whether a scene has an up and a down.
        teacher: a checkpoint to distil, for the method that does.
    """

    imgsz: int
    batch: int
    images: int
    steps: int
    upright: bool = False
    teacher: Path | None = None


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


def _simclr(trunk: Trunk, settings: Settings) -> torch.nn.Module:
    from edge.methods.simclr import SimCLR

    return SimCLR(trunk, settings)


def _moco(trunk: Trunk, settings: Settings) -> torch.nn.Module:
    from edge.methods.moco import MoCo

    return MoCo(trunk, settings)


def _vicreg(trunk: Trunk, settings: Settings) -> torch.nn.Module:
    from edge.methods.vicreg import VICReg

    return VICReg(trunk, settings)


def _dense(trunk: Trunk, settings: Settings) -> torch.nn.Module:
    from edge.methods.dense import Dense

    return Dense(trunk, settings)


def _mae(trunk: Trunk, settings: Settings) -> torch.nn.Module:
    from edge.methods.mae import MaskedModelling

    return MaskedModelling(trunk, settings)


def _rotation(trunk: Trunk, settings: Settings) -> torch.nn.Module:
    from edge.methods.rotation import Rotation

    return Rotation(trunk, settings)


def _jigsaw(trunk: Trunk, settings: Settings) -> torch.nn.Module:
    from edge.methods.jigsaw import Jigsaw

    return Jigsaw(trunk, settings)


def _hybrid(trunk: Trunk, settings: Settings) -> torch.nn.Module:
    from edge.methods.hybrid import Hybrid

    return Hybrid(trunk, settings)


def _distill(trunk: Trunk, settings: Settings) -> torch.nn.Module:
    from edge.methods.distill import Distill

    return Distill(trunk, settings)


METHODS: dict[str, Callable[[Trunk, Settings], torch.nn.Module]] = {
    "dense": _dense,
    "simclr": _simclr,
    "moco": _moco,
    "vicreg": _vicreg,
    "mae": _mae,
    "rotation": _rotation,
    "jigsaw": _jigsaw,
    "hybrid": _hybrid,
    "distill": _distill,
}


def build_method(name: str, trunk: Trunk, settings: Settings) -> torch.nn.Module:
    """A method around a trunk; it satisfies `Method`.

    Raises:
        TrainingError: unknown name, or what the method needs is not given.
        MissingPackageError: a package of the train extra is not installed.
    """
    if name not in METHODS:
        raise TrainingError(f"unknown method {name!r}; the methods are {', '.join(METHODS)}")
    try:
        return METHODS[name](trunk, settings)
    except ImportError as error:
        raise MissingPackageError(error.name or "lightly", "train") from error
