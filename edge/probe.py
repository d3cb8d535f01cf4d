"""How much do features know without being trained for it? kNN and a linear classifier on what a frozen network sees.

Classes are those of labelled boxes, each cut out with some of its surroundings, or of whole images that lie in a folder for
each class, as classifiers' data sets do. The two classifiers are what papers on
self-supervision report; the same network with fresh weights, whose batch norms have seen the same boxes, is measured beside,
since much of a figure is the data's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.labels import LabeledImage, load_dataset
from edge.errors import TrainingError
from edge.features import checked_preprocess, features, frozen_trunk, letterboxed, show
from edge.yolo import Part
from runtime.errors import MissingPackageError, SourceError
from runtime.images import MOST_DAMAGED, list_images, read_image
from runtime.preprocess import Preprocess
from runtime.progress import Progress

_NEIGHBOURS = 20
_SURROUNDINGS = 1.3  # side of what is cut out over the box's
_SMALLEST = 8  # pixels of a box's longer side; smaller ones show nothing
_DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """What is probed.

    Attributes:
        data: data.yaml; classifiers learn on the boxes of `train` and are asked about those of `val`. Or a folder with
            `train/CLASS/` and `val/CLASS/`, whose images are learnt from and asked about whole.
        init: weights, in the order they are injected.
        model: architecture.
        part: whose features.
        imgsz: side in pixels of the square that a box is shown at.
        seed: of the fresh weights beside.
    """

    data: Path
    init: tuple[Path, ...]
    model: str = "yolo11n"
    part: Part = "backbone"
    imgsz: int = 128
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Probe:
    """What was found; shares of right answers, 0 to 1.

    Attributes:
        knn: by the 20 nearest boxes, cosine, weighted by distance.
        linear: by logistic regression.
        linear_interval: 95 % of the bootstrap over what was asked.
        train: boxes, or images, that were learnt from.
        val: those that were asked about.
    """

    knn: float
    linear: float
    linear_interval: tuple[float, float]
    train: int
    val: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def probe(request: ProbeRequest) -> dict[str, Probe]:
    """Probes the weights and, as `fresh weights`, the same network without them.

    Raises:
        DataError: unusable labels.
        TrainingError: fewer than two classes to learn, or none of them to ask about.
        CheckpointError: weights of another architecture.
    """
    preprocess = checked_preprocess(request.imgsz)
    if request.data.is_dir():
        crops = _whole_images(request.data, preprocess)
    else:
        dataset = load_dataset(request.data)
        crops = {name: _crops(items, preprocess) for name, items in (("train", dataset.train), ("val", dataset.val))}
    classes = {name: np.array([class_id for _, class_id in found]) for name, found in crops.items()}
    if not len(classes["val"]) or len(set(classes["train"])) < 2:
        raise TrainingError(f"{request.data} shows no two classes in `train` and some of them in `val`; a probe needs them")
    never = ~np.isin(classes["val"], classes["train"])
    if never.all():
        raise TrainingError(f"{request.data} shows none of the classes of `val` in `train`; split it so that both have some")
    if never.any():
        sys.stderr.write(
            f"{never.sum()} of {len(never)} in `val` are of classes that `train` never shows, so nobody can be right\n"
        )
    given = {"fresh weights": (), "given weights": request.init}
    trunks = {name: frozen_trunk(request.model, request.part, init, request.seed) for name, init in given.items()}
    shuffled = np.random.default_rng(request.seed).permutation(len(crops["train"]))
    show(trunks["fresh weights"], [crops["train"][index][0] for index in shuffled])
    found: dict[str, Probe] = {}
    with Progress("probe", len(trunks) * sum(map(len, crops.values()))) as progress:
        for name, trunk in trunks.items():
            vectors = {side: features(trunk, [crop for crop, _ in made], progress) for side, made in crops.items()}
            found[name] = _classified(vectors["train"], classes["train"], vectors["val"], classes["val"], request.seed)
    return found


def _whole_images(folder: Path, preprocess: Preprocess) -> dict[str, list[tuple[NDArray[np.uint8], int]]]:
    """By side: every image, letterboxed, and the class whose folder it lies in.

    Raises:
        DataError: no such folders, or others in `val` than in `train`.
        SourceError: a class without images, or too many damaged ones.
    """
    classes = {side: _folders(folder / side) for side in ("train", "val")}
    if not classes["train"] or not set(classes["val"]) <= set(classes["train"]):
        raise DataError(
            f"{folder} has no train/CLASS/ folders, or others in val; a probe takes these, or a data.yaml with labelled boxes"
        )
    found = {}
    for side, names in classes.items():
        class_ids = {path: classes["train"].index(name) for name in names for path in list_images(folder / side / name)}
        found[side] = [(letterboxed(image, preprocess), class_ids[path]) for path, image in _readable(list(class_ids))]
    return found


def _folders(folder: Path) -> list[str]:
    """Names of those in it that are not hidden, sorted; none where it is not there."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if path.is_dir() and not path.name.startswith("."))


def _readable(paths: Sequence[Path]) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """The pictures that can be decoded; damaged ones are named on stderr.

    Raises:
        SourceError: more than 5 % are damaged.
    """
    damaged = 0
    for path in paths:
        try:
            image = read_image(path)
        except SourceError as error:
            damaged += 1
            if damaged > MOST_DAMAGED * len(paths):
                raise SourceError(
                    f"{damaged} of {len(paths)} images are damaged, more than 5 %, this one as well: {error}"
                ) from error
            sys.stderr.write(f"left out: {error}\n")
            continue
        yield path, image


def _crops(items: Sequence[LabeledImage], preprocess: Preprocess) -> list[tuple[NDArray[np.uint8], int]]:
    """Every box large enough, letterboxed: uint8 (side, side, 3) BGR and its class."""
    found = []
    by_path = {item.path: item for item in items}
    for path, image in _readable(list(by_path)):
        item = by_path[path]
        truth = item.truth((image.shape[1], image.shape[0]))
        for (left, top, right, bottom), class_id in zip(truth.xyxy.tolist(), truth.class_id.tolist(), strict=True):
            if max(right - left, bottom - top) < _SMALLEST:
                continue
            grow_x, grow_y = ((_SURROUNDINGS - 1) / 2 * extent for extent in (right - left, bottom - top))
            x, y = max(0, int(left - grow_x)), max(0, int(top - grow_y))
            part = image[y : int(bottom + grow_y) + 1, x : int(right + grow_x) + 1]
            found.append((letterboxed(np.ascontiguousarray(part), preprocess), class_id))
    return found


def _classified(
    train: NDArray[np.float32],
    train_classes: NDArray[np.int64],
    val: NDArray[np.float32],
    val_classes: NDArray[np.int64],
    seed: int,
) -> Probe:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingPackageError("scikit-learn", "train") from error
    neighbours = KNeighborsClassifier(min(_NEIGHBOURS, len(train)), weights="distance", metric="cosine").fit(
        train, train_classes
    )
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(train, train_classes)
    right = linear.predict(val) == val_classes
    draws = np.random.default_rng(seed).integers(len(right), size=(_DRAWS, len(right)))
    low, high = np.percentile(right[draws].mean(1), [2.5, 97.5])
    knn = float((neighbours.predict(val) == val_classes).mean())
    return Probe(knn, float(right.mean()), (float(low), float(high)), len(train), len(val))
