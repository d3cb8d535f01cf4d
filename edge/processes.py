"""One process or several (`torchrun`), on CPUs or GPUs, in one precision: Lightning Fabric, set up in one place."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from runtime.errors import MissingPackageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["32-true", "bf16-mixed"]


def launched_fabric(precision: Precision = "32-true") -> Fabric:
    """A fabric over the processes that `torchrun` started; alone, over the best device of this machine.

    Raises:
        MissingPackageError: lightning-fabric is not installed.
    """
    try:
        from lightning_fabric import Fabric
    except ImportError as error:
        raise MissingPackageError("lightning-fabric", "train") from error
    local, world = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ.get("WORLD_SIZE", "1"))
    fabric = Fabric(
        strategy="ddp_find_unused_parameters_true" if world > 1 else "auto",
        devices=local,
        num_nodes=max(1, world // local),
        precision=precision,
    )
    fabric.launch()
    return fabric


def is_first() -> bool:
    """Whether this process is the one that writes and tells."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """Processes that train one model."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def several() -> bool:
    """Whether there are more than one."""
    return world_size() > 1
