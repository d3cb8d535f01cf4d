"""Before hours of training: does the pool show what the labels show, and does it give away the held-out images?

Two sets are as far apart as a linear classifier on a network's features can tell them apart (proxy A-distance, Ben-David et
al. 2006): 50 % right is one and the same, 100 % two worlds. A frame of the pool that is (nearly) a held-out image makes every
later figure too good; such frames are named, and taken out of the pool on request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from calibration.labels import load_dataset
from edge.errors import TrainingError
from edge.yolo import Part, build_detector, inject
from runtime.errors import MissingPackageError
from runtime.images import decode_image, read_image
from runtime.pool import Pool
from runtime.preprocess import Preprocess
from runtime.progress import Progress

T = TypeVar("T")

_MOST = 400  # frames of each set
_SIDE = 32  # of the pictures that near-duplicates are compared with
_ALIKE = 0.97  # correlation of two such pictures, from which on they show the same
_NEAR, _FAR = 0.70, 0.90  # share told apart
_FOLDS = 5
_BATCH = 16


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
        leaks: names of the pool's frames that show a held-out image → that image.
        verdict: sentences.
    """

    frames: int
    labels: int
    pool_from_labels: float
    pool_from_reference: float | None
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
    from converters.checkpoint import load_checkpoint
    from edge.trunk import Trunk

    dataset = load_dataset(request.data)
    detector = build_detector(request.model, ["object"], 0)
    for path in request.init:
        inject(detector, load_checkpoint(path), request.model)
    look = _Look(Trunk(detector, request.model, request.part).eval(), request.imgsz)
    frames, leaks = _pool_and_leaks(request, [item.path for item in dataset.val], remove=remove)
    labelled = [read_image(item.path) for item in _spread(dataset.train)]
    if min(len(frames), len(labelled)) < _FOLDS:
        raise TrainingError(
            f"{len(frames)} frames and {len(labelled)} labelled images are too few to compare; {_FOLDS} are needed"
        )
    pool_vectors = look(frames)
    from_labels = told_apart(pool_vectors, look(labelled))
    from_reference = None
    if request.reference:
        from_reference = told_apart(pool_vectors, look(_frames(request.reference)))
    with Pool.open(request.pool) as pool:
        count = len(pool)
    verdict = _verdict(count, len(dataset.train), from_labels, from_reference, leaks, removed=remove)
    return TransferCheck(count, len(dataset.train), round(from_labels, 3), from_reference, leaks, verdict)


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


class _Look:
    def __init__(self, trunk: object, imgsz: int) -> None:
        self._trunk, self._preprocess = trunk, Preprocess((imgsz, imgsz))

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Features, float32 (n, d)."""
        import torch

        from edge.trunk import pooled

        found = []
        with Progress("look", len(images)) as progress, torch.inference_mode():
            for start in range(0, len(images), _BATCH):
                canvas = self._preprocess.buffer(len(images[start : start + _BATCH]))
                for row, image in enumerate(images[start : start + _BATCH]):
                    self._preprocess.letterbox(image, canvas[row])
                rgb = torch.from_numpy(np.ascontiguousarray(canvas[..., ::-1].transpose(0, 3, 1, 2))).float() / 255
                vectors = pooled(self._trunk(rgb))  # type: ignore[operator]
                found.append(torch.nn.functional.normalize(vectors, dim=1).numpy())
                progress.advance("", len(canvas))
        return np.concatenate(found)


def small_picture(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What near-duplicates are compared with: grey, 32 × 32, mean 0, length 1; float32 (1024,)."""
    grey = cv2.cvtColor(cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY).astype(np.float32)
    vector = (grey - grey.mean()).ravel()
    return np.asarray(vector / max(1e-6, float(np.linalg.norm(vector))), np.float32)


def _pool_and_leaks(
    request: CheckRequest, held_out: Sequence[Path], *, remove: bool
) -> tuple[list[NDArray[np.uint8]], dict[str, str]]:
    """A sample of the pool's frames, and all of its frames that show a held-out image."""
    known = (
        np.stack([small_picture(read_image(path)) for path in held_out]) if held_out else np.zeros((0, _SIDE**2), np.float32)
    )
    leaks: dict[str, str] = {}
    kept: list[NDArray[np.uint8]] = []
    with Pool.create(request.pool, evict=False) if remove else Pool.open(request.pool) as pool:
        entries = pool.entries(with_embeddings=False)
        sampled = {entry.sha256 for entry in _spread(entries)}
        with Progress("leaks", len(entries)) as progress:
            for entry in entries:
                image = decode_image(pool.read_jpeg(entry), entry.sha256)
                alike = known @ small_picture(image) if len(known) else np.zeros(0)
                if len(alike) and float(alike.max()) >= _ALIKE:
                    leaks[f"{entry.sha256[:16]}.jpg"] = held_out[int(alike.argmax())].name
                    if remove:
                        pool.remove(entry)
                elif entry.sha256 in sampled:
                    kept.append(image)
                progress.advance("")
    return kept, leaks


def _frames(path: Path) -> list[NDArray[np.uint8]]:
    with Pool.open(path) as pool:
        return [decode_image(pool.read_jpeg(entry), entry.sha256) for entry in _spread(pool.entries(with_embeddings=False))]


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
            told.append("The scene is far from what the weights were trained on: self-supervision has something to add.")
        else:
            told.append("The scene is like what the weights were trained on: expect little from self-supervision.")
    if frames < 5 * labels:
        told.append(
            f"{frames} frames are few beside {labels} labels; five times as many are worth the hours, twice as many may be."
        )
    return tuple(told)
