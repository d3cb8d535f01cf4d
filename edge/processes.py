"""One process or several (`torchrun`), on CPUs or GPUs, in one precision: Lightning Fabric, set up in one place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from edge.errors import TrainingError
from runtime.errors import MissingPackageError, first_line

if TYPE_CHECKING:
    import torch
    from lightning_fabric import Fabric
    from ultralytics.nn.tasks import DetectionModel

_CLASSES = 1  # of Ultralytics' losses: boxes, classes, distribution of the boxes' sides
# What gloo, NCCL and torch's store say of a process that is gone.
_LEFT = (
    "closed by peer", "reset by peer", "Broken pipe", "pair closure", "Timed out waiting", "remote process exited",
    "Connection was likely closed", "Connection refused",
)  # fmt: skip
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


def detection_loss(
    detector: DetectionModel, batch: Mapping[str, torch.Tensor], fabric: Fabric, *, boxes: bool = True
) -> torch.Tensor:
    """A detector's loss, the mean of the images: layers in the fabric's precision, boxes and assignment in full precision.

    Args:
        detector: in training mode.
        batch: `img` float32 (b, 3, h, w) RGB in 0 to 1; of each target `cls` (n, 1), `bboxes` (n, 4) as centre and size,
            0 to 1, and `batch_idx` (n,), its image.
        fabric: where it runs.
        boxes: whether it learns where objects end, or only what is where.
    """
    with fabric.autocast():
        found = detector(batch["img"])
    return loss_of_found(detector, found, batch, boxes=boxes)


def loss_of_found(
    detector: DetectionModel, found: Any, batch: Mapping[str, torch.Tensor], *, boxes: bool = True
) -> torch.Tensor:
    """The same from what the detector's head gave; also within autocast."""
    import torch
    from lightning_utilities.core.apply_func import apply_to_collection

    with torch.autocast(batch["img"].device.type, enabled=False):
        loss, _ = detector.loss(batch, apply_to_collection(found, torch.Tensor, torch.Tensor.float))
        total: torch.Tensor = (loss.sum() if boxes else loss[_CLASSES]) / len(batch["img"])
    return total


def is_first() -> bool:
    """Whether this process is the one that writes and tells."""
    return int(os.environ.get("RANK", "0")) == 0


def world_size() -> int:
    """Processes that train one model."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def several() -> bool:
    """Whether there are more than one."""
    return world_size() > 1


@contextmanager
def lost_told() -> Iterator[None]:
    """Within, a process of several that another one has left says so in a sentence; why it left is that one's to say.

    Raises:
        TrainingError: another process has ended.
    """
    try:
        yield
    except RuntimeError as error:  # gloo's have no kind of their own
        if several() and any(told in str(error) for told in _LEFT):
            raise TrainingError(
                f"another process of this run has ended ({first_line(error)}); its own message says why, if it was not killed; "
                "start all of them again, with --resume where something was saved"
            ) from error
        raise
