"""Before hours of training: does the pool show what the labels show, and does it give away the held-out images?

Two sets are as far apart as a linear classifier on a network's features can tell them apart (proxy A-distance, Ben-David et
al. 2006): 50 % right is one and the same, 100 % two worlds. A frame of the pool that is (nearly) a held-out image makes every
later figure too good; such frames are named, and taken out of the pool on request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration.labels import load_dataset
from edge.errors import TrainingError
from edge.features import checked_preprocess, features, frozen_trunk, letterboxed, unit_vectors
from edge.leaks import leaks_of
from edge.pool_frames import readable
from edge.yolo import Part
from runtime.errors import MissingPackageError
from runtime.images import read_image
from runtime.pool import Pool
from runtime.preprocess import Preprocess
from runtime.progress import Progress

T = TypeVar("T")

_MOST = 400  # frames of each set
_NEAR, _FAR = 0.70, 0.90  # share told apart
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What is compared.

    Attributes:
        pool: unlabeled frames.
        data: data.yaml with `train` and `val`.
        init: weights whose features are used, in the order they are injected.
        model: architecture.
        part: whose features.
        imgsz: side in pixels of the letterboxed square.
        reference: a pool of what the weights were trained on (COCO), None to leave that out.
    """

    pool: Path
    data: Path
    init: tuple[Path, ...]
    model: str = "yolo11n"
    part: Part = "backbone"
    imgsz: int = 320
    reference: Path | None = None


@dataclass(frozen=True, slots=True)
class TransferCheck:
    """What was found.

    Attributes:
        frames: in the pool.
        labels: labelled images.
        pool_from_labels: share told apart, 0.5 to 1.
        pool_from_reference: the same; None without a reference.
        labels_from_reference: the same.
        leaks: names of the pool's frames that show a held-out image → that image.
        verdict: sentences.
    """

    frames: int
    labels: int
    pool_from_labels: float
    pool_from_reference: float | None
    labels_from_reference: float | None
    leaks: dict[str, str]
    verdict: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def check_transfer(request: CheckRequest, *, remove: bool = False) -> TransferCheck:
    """Compares pool, labels and reference; `remove` takes leaking frames out of the pool.

    Raises:
        PoolError, DataError, CheckpointError: what is named cannot be read.
        TrainingError: too few images to compare.
    """
    dataset = load_dataset(request.data)
    preprocess = checked_preprocess(request.imgsz)
    trunk = frozen_trunk(request.model, request.part, request.init)
    with Pool.open(request.pool) as pool:
        leaks = leaks_of(pool, [item.path for item in dataset.val])
        frames = _sample(pool, preprocess, leaks)
    labelled = [letterboxed(read_image(item.path), preprocess) for item in _spread(dataset.train)]
    if min(len(frames), len(labelled)) < _FOLDS:
        raise TrainingError(
            f"{len(frames)} frames and {len(labelled)} labelled images are too few to compare; {_FOLDS} are needed"
        )
    reference = []
    if request.reference:
        with Pool.open(request.reference) as pool:
            reference = _sample(pool, preprocess, {})
        if len(reference) < _FOLDS:
            raise TrainingError(f"{len(reference)} frames in {request.reference} are too few to compare; {_FOLDS} are needed")
    with Progress("look", len(frames) + len(labelled) + len(reference)) as progress:
        own, theirs = (unit_vectors(features(trunk, images, progress)) for images in (frames, labelled))
        elsewhere = unit_vectors(features(trunk, reference, progress)) if reference else None
        from_labels = told_apart(own, theirs)
        pool_away, labels_away = (None if elsewhere is None else told_apart(each, elsewhere) for each in (own, theirs))
    if remove and leaks:
        _remove(request.pool, set(leaks))
    with Pool.open(request.pool) as pool:
        count = len(pool)
    named = {f"{digest[:16]}.jpg": path.name for digest, path in leaks.items()}
    verdict = _verdict(count, len(dataset.train), from_labels, pool_away, named, removed=remove)
    if both := {item.path.resolve() for item in dataset.train} & {item.path.resolve() for item in dataset.val}:
        told = f"{len(both)} held-out images are training images as well: every figure will be too good; split anew with edge split."
        verdict = (told, *verdict)
    return TransferCheck(count, len(dataset.train), round(from_labels, 3), pool_away, labels_away, named, verdict)


def told_apart(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Balanced accuracy, 0.5 to 1, of a linear classifier between two sets of features (n, d), on folds it has not seen.

    Raises:
        MissingPackageError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import cross_val_score
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise MissingPackageError("scikit-learn", "train") from error
    vectors = np.concatenate([first, second])
    sides = np.repeat([0, 1], [len(first), len(second)])
    order = np.random.default_rng(0).permutation(len(sides))
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced"))
    scores = cross_val_score(judge, vectors[order], sides[order], cv=_FOLDS, scoring="balanced_accuracy")
    return max(0.5, float(np.mean(scores)))


def _sample(pool: Pool, preprocess: Preprocess, leaks: Mapping[str, Path]) -> list[NDArray[np.uint8]]:
    """Frames at equal distances, letterboxed at once: whole ones would fill the memory."""
    entries = [entry for entry in pool.entries(with_embeddings=False) if entry.sha256 not in leaks]
    return [letterboxed(image, preprocess) for _, image in readable(pool, _spread(entries))]


def _remove(path: Path, digests: set[str]) -> None:
    with Pool.create(path, evict=False) as pool:
        for entry in pool.entries(with_embeddings=False):
            if entry.sha256 in digests:
                pool.remove(entry)


def _spread(items: Sequence[T]) -> list[T]:
    """At most `_MOST` of them, at equal distances."""
    wanted = sorted({round(place) for place in np.linspace(0, len(items) - 1, min(_MOST, len(items)))}) if items else []
    return [items[index] for index in wanted]


def _verdict(
    frames: int, labels: int, from_labels: float, from_reference: float | None, leaks: dict[str, str], *, removed: bool
) -> tuple[str, ...]:
    told = []
    if leaks:
        done = "they were taken out" if removed else "take them out with --remove, or every figure will be too good"
        told.append(f"{len(leaks)} frame(s) of the pool show held-out images: {done}.")
    if from_labels >= _FAR:
        told.append("The pool shows something else than the labels do: what is learnt from it may not help; look at both.")
    elif from_labels >= _NEAR:
        told.append("The pool differs from the labels somewhat (light, place or camera).")
    else:
        told.append("The pool shows what the labels show.")
    if from_reference is not None:
        if from_reference >= _FAR:
            told.append(
                "The scene is far from what the weights were trained on: self-supervision may have something to add. Measured gains "
                "go both ways; `edge study` tells for this scene."
            )
        else:
            told.append("The scene is like what the weights were trained on: expect little from self-supervision.")
    if frames < 5 * labels:
        told.append(
            f"{frames} frames are few beside {labels} labels; five times as many are worth the hours, twice as many may be."
        )
    return tuple(told)
