"""What edgeloop knows of YOLO: which layers are the backbone, how its weights move, how they are averaged.

With `edge.training_images` the only files of `edge` that import ultralytics; building and reading models is in `converters.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

from converters import resnet
from converters.checkpoint import Checkpoint, build_model, import_ultralytics
from converters.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from ultralytics.nn.tasks import DetectionModel


# What self-supervision trains: the backbone, backbone and neck (all but the head), or all but the head's class branch.
Part = Literal["backbone", "neck", "localizer"]
# What is left of the detector.
PARTS: dict[str, str] = {"backbone": "neck and head", "neck": "head", "localizer": "class branch"}


_AVERAGED_SHARE = 0.1  # of a run's steps: what the average remembers


def layers_of(detector: DetectionModel, model: str) -> list[torch.nn.Module]:
    """A detector's layers from the image to the head; the stages of a ResNet are layers too."""
    first, *others = detector.model
    return [*(first.m if model in resnet.RESNET_MODELS else [first]), *others]


@dataclass(frozen=True, slots=True)
class Family:
    """One YOLO family.

    Attributes:
        last_backbone_layer: index of the last layer that self-supervised pretraining trains.
        layers: number of layers; the last is the head.
    """

    last_backbone_layer: int
    layers: int


# Which layers are the backbone: LightlyTrain's slices, read off each yaml (shared facts, ssl-drift-refresh.md §1.1).
# v5, v8, v10 and 12 end before SPPF (or have none); 11 and 26 include SPPF and C2PSA; v9 includes SPPELAN.
FAMILIES: dict[str, Family] = {
    "yolov5": Family(8, 25),
    "yolov8": Family(8, 23),
    "yolov9": Family(9, 23),
    "yolov10": Family(8, 24),
    "yolo11": Family(10, 24),
    "yolo12": Family(8, 22),
    "yolo26": Family(10, 24),
}
# v9's largest has its own yaml with auxiliary branches; a ResNet is one layer, whose stages three more pick.
_OTHER_DEPTH = {
    "yolov9e": Family(29, 43),
    **{name: Family(resnet.LAST_BACKBONE_LAYER, resnet.LAYERS) for name in resnet.RESNET_MODELS},
}


@dataclass(frozen=True, slots=True)
class Injection:
    """How many tensors were taken over.

    Attributes:
        taken: tensors copied.
        wanted: tensors that should have been.
        left_fresh: tensors of the target that stay as they were, with the reason.
        reason: why `left_fresh` are.
    """

    taken: int
    wanted: int
    left_fresh: int
    reason: str

    def __str__(self) -> str:
        fresh = f", {self.left_fresh} left fresh ({self.reason})" if self.left_fresh else ""
        return f"{self.taken} of {self.wanted} tensors{fresh}"


def family_of(model: str) -> Family:
    """The family of a model name such as `yolo11n`.

    Raises:
        CheckpointError: unknown name.
    """
    if model in _OTHER_DEPTH:
        return _OTHER_DEPTH[model]
    for prefix, family in FAMILIES.items():
        if model.startswith(prefix):
            return family
    raise CheckpointError(f"unknown model {model!r}; known families are {', '.join(FAMILIES)}")


def part_keys(model: str, state: Mapping[str, torch.Tensor], part: Part) -> list[str]:
    """The names of a detector's tensors that belong to a part of it."""
    if part == "localizer":
        return [key for key in state if not _is_class_branch(key, model)]
    family = family_of(model)
    last = family.last_backbone_layer if part == "backbone" else family.layers - 2
    return [key for key in state if int(key.split(".")[1]) <= last]


def build_detector(model: str, names: Sequence[str], seed: int) -> DetectionModel:
    """A detector with fresh weights that depend on the seed only."""
    import torch

    torch.manual_seed(seed)
    detector = build_model(model, len(names))
    detector.names = dict(enumerate(names))
    import_ultralytics()
    from ultralytics.cfg import get_cfg

    detector.args = get_cfg()  # loss gains are read from here
    return detector


def inject(target: DetectionModel, source: Checkpoint, model: str) -> Injection:
    """Copies a checkpoint's weights into a detector: its part of a backbone, neck or localizer, everything of a detector.

    The class branch of the head may differ when the number of classes does; any other mismatch is refused.

    Raises:
        CheckpointError: another architecture, or tensors missing or of another shape.
    """
    if source.model != model:
        raise CheckpointError(
            f"the checkpoint is of {source.model}, but the model is {model}; name the same architecture in both"
        )
    own = target.state_dict()
    wanted = part_keys(model, own, cast("Part", source.kind)) if source.kind in PARTS else list(own)
    fits = [key for key in wanted if key in source.state and source.state[key].shape == own[key].shape]
    missed = sorted(set(wanted) - set(fits))
    classes_differ = source.kind == "detector" and len(source.names) != target.model[-1].nc
    unexplained = [key for key in missed if not (classes_differ and _is_class_branch(key, model))]
    if unexplained:
        raise CheckpointError(
            f"{len(unexplained)} of {len(wanted)} tensors of {model} are missing in the checkpoint or of another shape, "
            f"first {unexplained[0]}; it is of another architecture or incomplete"
        )
    target.load_state_dict({key: source.state[key] for key in fits}, strict=False)
    reason = f"class branch, of {len(source.names)} other classes" if missed else ""
    if source.kind in PARTS:
        return Injection(len(fits), len(wanted), len(own) - len(wanted), f"{PARTS[source.kind]}, not pretrained")
    return Injection(len(fits), len(wanted), len(missed), reason)


def _is_class_branch(key: str, model: str) -> bool:
    parts = key.split(".")
    return int(parts[1]) == family_of(model).layers - 1 and parts[2] in ("cv3", "one2one_cv3")


class WeightAverage(Protocol):
    """Ultralytics' `ModelEMA`: an exponential moving average of a model's weights.

    Attributes:
        ema: the averaged model.
        updates: how many steps it has seen; its memory grows with them.
    """

    ema: DetectionModel
    updates: int

    def update(self, model: DetectionModel) -> None:
        """Takes in the weights of one more step."""
        ...


def weight_average(detector: DetectionModel, steps: int) -> WeightAverage:
    """An average that starts at the detector's weights, over about a tenth of a run of so many steps.

    Ultralytics' own is for runs of hundreds of thousands; in one of hundreds it is nearly the last weights themselves.
    """
    import_ultralytics()
    from ultralytics.utils.torch_utils import ModelEMA

    decay = min(0.9999, max(0.0, 1 - 1 / (_AVERAGED_SHARE * steps)))
    return cast("WeightAverage", ModelEMA(detector, decay=decay, tau=max(1.0, steps / 20)))
