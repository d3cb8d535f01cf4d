"""What edgeloop knows of YOLO: which layers are the backbone, how its weights move, how labelled batches are made.

The only file of `edge` that imports ultralytics; building and reading models is in `converters.checkpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from calibration.labels import LabeledImage
from converters import resnet
from converters.checkpoint import Checkpoint, build_model, import_ultralytics
from converters.errors import CheckpointError
from runtime.images import read_image

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader
    from ultralytics.nn.tasks import DetectionModel


# What self-supervision trains: the backbone, or backbone and neck (all but the head).
Part = Literal["backbone", "neck"]
PARTS: tuple[Part, ...] = ("backbone", "neck")


_AVERAGED_SHARE = 0.1  # of a run's steps: what the average remembers


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
    """Copies a checkpoint's weights into a detector: its part of a `backbone` or `neck`, everything of a `detector`.

    The class branch of the head may differ when the number of classes does; any other mismatch is refused.

    Raises:
        CheckpointError: another architecture, or tensors missing or of another shape.
    """
    if source.model != model:
        raise CheckpointError(
            f"the checkpoint is of {source.model}, but the model is {model}; name the same architecture in both"
        )
    own = target.state_dict()
    wanted = part_keys(model, own, source.kind) if source.kind in PARTS else list(own)
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
    reason = f"class branch: {len(source.names)} → {target.model[-1].nc} classes" if missed else ""
    if source.kind in PARTS:
        left = "neck and head, not pretrained" if source.kind == "backbone" else "head, not pretrained"
        return Injection(len(fits), len(wanted), len(own) - len(wanted), left)
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


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What a training batch is like.

    Attributes:
        imgsz: side of the square images in pixels.
        batch: how many.
        seed: of their order.
        mosaic: whether four images are pasted into one.
    """

    imgsz: int
    batch: int
    seed: int
    mosaic: bool


Relight = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def training_loader(
    items: Sequence[LabeledImage], names: Sequence[str], batches: BatchSpec, relight: Relight | None
) -> DataLoader[Any]:
    """Batches with Ultralytics' own augmentation (mosaic, HSV, scale, flip), from labels that were checked before.

    `relight` changes the light of an image before everything else.

    Ultralytics' dataset would write a pickled label cache beside the images and read one back; ours keeps out of there.
    """
    import torch

    import_ultralytics()
    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.utils import DEFAULT_CFG_DICT

    class CheckedDataset(YOLODataset):  # type: ignore[misc]  # ultralytics is untyped
        def get_img_files(self, _: object) -> list[str]:
            return [str(item.path) for item in items]

        def get_labels(self) -> list[dict[str, Any]]:
            return [_ultralytics_label(item) for item in items]

        def build_transforms(self, hyp: Any = None) -> Any:
            # Mosaic would paste from a buffer of recent images, which a resumed run does not have; from a data set
            # that claims to be in memory it draws from all images, by the seeded stream.
            cache: str | None = self.cache
            self.cache: str | None = "ram"
            transforms = super().build_transforms(hyp)
            self.cache = cache
            return transforms

        def load_image(self, index: int, *arguments: Any, **options: Any) -> tuple[Any, ...]:
            image, *sizes = super().load_image(index, *arguments, **options)
            return (relight(image) if relight else image, *sizes)

    settings = get_cfg(DEFAULT_CFG_DICT, {"mosaic": 1.0 if batches.mosaic else 0.0, "erasing": 0.0, "auto_augment": None})
    dataset = CheckedDataset(
        img_path=[str(item.path) for item in items], imgsz=batches.imgsz, batch_size=batches.batch, augment=True, hyp=settings,
        rect=False, cache=False, single_cls=False, stride=32, pad=0.0, prefix="", task="detect",
        data={"names": dict(enumerate(names)), "channels": 3},
    )  # fmt: skip
    dataset.npy_files = [Path(os.devnull) / "none"] * len(items)  # it would trust, rewrite or delete a.npy beside a.jpg
    generator = torch.Generator()
    generator.manual_seed(batches.seed)
    return torch.utils.data.DataLoader(
        dataset,
        batches.batch,
        shuffle=True,
        generator=generator,
        collate_fn=YOLODataset.collate_fn,
        drop_last=len(items) > batches.batch,
    )


def _ultralytics_label(item: LabeledImage) -> dict[str, Any]:
    height, width = read_image(item.path).shape[:2]
    return {
        "im_file": str(item.path), "shape": (height, width), "cls": item.class_id[:, None].astype(np.float32),
        "bboxes": item.cxcywh, "segments": [], "keypoints": None, "normalized": True, "bbox_format": "xywh",
    }  # fmt: skip
