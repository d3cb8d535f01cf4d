"""Batches that a detector learns from: labelled images and frames with a teacher's boxes, under Ultralytics' augmentation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from calibration.labels import LabeledImage
from converters.checkpoint import import_ultralytics
from runtime.errors import SourceError
from runtime.images import MOST_DAMAGED, read_image
from runtime.progress import Progress

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_SHOWN = 3  # damaged images in a refusal
_GREY = 114  # Ultralytics' colour of what is no picture


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An image that a detector learns from.

    Attributes:
        item: its file and boxes.
        size_wh: of the file's picture in pixels.
        hidden: places that are not shown, float32 (n, 4): left, top, right, bottom as shares of the picture.
        of_pool: whether its boxes are a teacher's.
    """

    item: LabeledImage
    size_wh: tuple[int, int]
    hidden: NDArray[np.float32]
    of_pool: bool = False


def _training_image(item: LabeledImage) -> TrainingImage:
    """A labelled image, all of it shown."""
    height, width = read_image(item.path).shape[:2]
    return TrainingImage(item, (width, height), np.zeros((0, 4), np.float32))


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What the batches of an epoch are like.

    Attributes:
        imgsz: side of the square images in pixels.
        batch: how many.
        seed: of their order.
        mosaic: whether four images are pasted into one.
        steps: batches; None for as many as there are whole ones.
        workers: processes that make them; 0 makes them on the training thread.
    """

    imgsz: int
    batch: int
    seed: int
    mosaic: bool
    steps: int | None = None
    workers: int = 0


def whole_images(items: Sequence[LabeledImage]) -> list[TrainingImage]:
    """The labelled images that can be decoded; damaged ones are named on stderr.

    Raises:
        SourceError: more than 5 % are damaged.
    """
    whole: list[TrainingImage] = []
    damaged: list[str] = []
    with Progress("labelled images", len(items)) as progress:
        for item in items:
            try:
                whole.append(_training_image(item))
            except SourceError as error:
                damaged.append(f"{error}")
            progress.advance()
    if len(damaged) > MOST_DAMAGED * len(items):
        raise SourceError(_told(damaged, f"{len(items)} training"))
    for told in damaged:
        sys.stderr.write(f"left out: {told}\n")
    return whole


def refuse_damaged(items: Sequence[LabeledImage], what: str) -> None:
    """For images of which none can be left out: were some of the held-out ones, a figure would not be that of the list.

    Args:
        items: looked at.
        what: they are, for who reads.

    Raises:
        SourceError: some cannot be decoded.
    """
    damaged = []
    with Progress(f"{what} images", len(items)) as progress:
        for item in items:
            try:
                read_image(item.path)
            except SourceError as error:
                damaged.append(f"{error}")
            progress.advance()
    if damaged:
        raise SourceError(_told(damaged, f"{len(items)} {what}"))


def _told(damaged: Sequence[str], of: str) -> str:
    more = f"; and {len(damaged) - _SHOWN} more" if len(damaged) > _SHOWN else ""
    return f"{len(damaged)} of {of} images are damaged: {'; '.join(damaged[:_SHOWN])}{more}"


Relight = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def training_loader(
    images: Sequence[TrainingImage], names: Sequence[str], batches: BatchSpec, relight: Relight | None
) -> DataLoader[Any]:
    """Batches with Ultralytics' own augmentation (mosaic, HSV, scale, flip), from labels that were checked before.

    `relight` changes the light of a labelled image before everything else.

    Ultralytics' dataset would write a pickled label cache beside the images and read one back; ours keeps out of there.
    """
    import torch

    from edge.loader_processes import without_advice

    import_ultralytics()
    from ultralytics.cfg import get_cfg
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.utils import DEFAULT_CFG_DICT

    class CheckedDataset(YOLODataset):  # type: ignore[misc]  # ultralytics is untyped
        def get_img_files(self, _: object) -> list[str]:
            return [str(image.item.path) for image in images]

        def get_labels(self) -> list[dict[str, Any]]:
            return [_ultralytics_label(image) for image in images]

        def build_transforms(self, hyp: Any = None) -> Any:
            # Mosaic would paste from a buffer of recent images, which a resumed run does not have; from a data set
            # that claims to be in memory it draws from all images, by the seeded stream.
            cache: str | None = self.cache
            self.cache: str | None = "ram"
            transforms = super().build_transforms(hyp)
            self.cache = cache
            return transforms

        def load_image(self, index: int, *arguments: Any, **options: Any) -> tuple[Any, ...]:
            picture, *sizes = super().load_image(index, *arguments, **options)
            if relight and not images[index].of_pool:
                picture = relight(picture)
            return (shown(picture, images[index]), *sizes)

    settings = get_cfg(DEFAULT_CFG_DICT, {"mosaic": 1.0 if batches.mosaic else 0.0, "erasing": 0.0, "auto_augment": None})
    dataset = CheckedDataset(
        img_path=[str(image.item.path) for image in images], imgsz=batches.imgsz, batch_size=batches.batch, augment=True, hyp=settings,
        rect=False, cache=False, single_cls=False, stride=32, pad=0.0, prefix="", task="detect",
        data={"names": dict(enumerate(names)), "channels": 3},
    )  # fmt: skip
    dataset.npy_files = [Path(os.devnull) / "none"] * len(images)  # it would trust, rewrite or delete a.npy beside a.jpg
    generator = torch.Generator()
    generator.manual_seed(batches.seed)
    count = batches.steps * batches.batch if batches.steps else len(images)
    with without_advice():
        return torch.utils.data.DataLoader(
            dataset,
            batches.batch,
            sampler=torch.utils.data.RandomSampler(dataset, num_samples=count, generator=generator),
            generator=generator,
            collate_fn=YOLODataset.collate_fn,
            drop_last=count > batches.batch,
            num_workers=batches.workers,
            multiprocessing_context="fork" if batches.workers else None,  # Ultralytics' data set of ours cannot be pickled
        )


def shown(picture: NDArray[np.uint8], image: TrainingImage) -> NDArray[np.uint8]:
    """The picture, uint8 (h, w, 3) at any size, with grey over the image's hidden places, but not over its boxes."""
    if not len(image.hidden):
        return picture
    height, width = picture.shape[:2]
    kept: NDArray[np.uint8] = picture.copy()
    for rows, columns in _windows(image.hidden, width, height):
        kept[rows, columns] = _GREY
    for rows, columns in _windows(image.item.truth((1, 1)).xyxy, width, height):
        kept[rows, columns] = picture[rows, columns]
    return kept


def _windows(shares: NDArray[np.float32], width: int, height: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns that boxes cover, whole pixels."""
    for left, top, right, bottom in shares.tolist():
        columns = slice(max(0, int(left * width)), int(np.ceil(right * width)))
        yield slice(max(0, int(top * height)), int(np.ceil(bottom * height))), columns


def _ultralytics_label(image: TrainingImage) -> dict[str, Any]:
    width, height = image.size_wh
    return {
        "im_file": str(image.item.path), "shape": (height, width), "cls": image.item.class_id[:, None].astype(np.float32),
        "bboxes": image.item.cxcywh, "segments": [], "keypoints": None, "normalized": True, "bbox_format": "xywh",
    }  # fmt: skip
