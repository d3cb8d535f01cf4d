"""`edge evaluate`: a bundle as deployed, or a checkpoint, on held-out labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calibration.accuracy import EVALUATION_CONFIDENCE, Accuracy, Detect, Pair, accuracy, pairs_of
from calibration.breakdown import Breakdown, breakdown
from calibration.errors import DataError
from calibration.labels import Dataset
from runtime.bundle import Bundle
from runtime.pipeline import Pipeline
from runtime.postprocess import Thresholds

CHECKPOINTS = (".pt", ".pth")  # one of these that is not there is told as a missing file, not as a missing bundle


_SHOWN = 8  # class names in a refusal


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found.

    Attributes:
        accuracy: in one line.
        breakdown: what it is made of.
        pairs: (truth, found) of each held-out image.
    """

    accuracy: Accuracy
    breakdown: Breakdown
    pairs: Sequence[Pair]

    def lines(self) -> list[str]:
        """For people: the whole, then classes and sizes."""
        told, parts = self.accuracy, self.breakdown
        (low, high), (f1_low, f1_high) = parts.map_interval, parts.f1_interval
        whole = (
            f"mAP50-95 {told.map50_95:.4f} ({low:.4f} to {high:.4f})  mAP50 {told.map50:.4f}  at confidence {told.confidence:g}: "
            f"F1 {told.f1:.4f} ({f1_low:.4f} to {f1_high:.4f})  precision {told.precision:.4f}  recall {told.recall:.4f}  "
            f"({told.images} images)"
        )
        rows = [(each.name, each.boxes, each.map50_95, each.map50, each.recall) for each in parts.classes]
        rows += [(each.name, each.boxes, each.map50_95, each.map50, each.recall) for each in parts.sizes]
        return [whole] + [
            f"  {name:20} {boxes:6} boxes  AP50-95 {map50_95:.3f}  AP50 {map50:.3f}  recall {recall:.3f}"
            for name, boxes, map50_95, map50, recall in rows
            if boxes
        ]


def evaluate_model(path: Path, dataset: Dataset, engine: str = "auto", precision: str = "auto", seed: int = 0) -> Evaluation:
    """Runs a model over the held-out images.

    Raises:
        DataError: other classes than the model's, or nothing held out.
        BundleError, BackendError, CheckpointError: the model cannot be read or run.
    """
    pairs, confidence = model_pairs(path, dataset, engine, precision)
    told = accuracy(pairs, dataset.names, confidence)
    return Evaluation(told, breakdown(pairs, dataset.names, confidence, seed), pairs)


def model_accuracy(path: Path, dataset: Dataset, engine: str = "auto", precision: str = "auto") -> Accuracy:
    """The accuracy alone, see `evaluate_model`."""
    pairs, confidence = model_pairs(path, dataset, engine, precision)
    return accuracy(pairs, dataset.names, confidence)


def model_pairs(path: Path, dataset: Dataset, engine: str, precision: str) -> tuple[list[Pair], float]:
    """(truth, found) of each held-out image, and the threshold that the model is deployed with."""
    with _detector(path, dataset, engine, precision) as (detect, confidence):
        return pairs_of(detect, dataset.val), confidence


@contextmanager
def _detector(path: Path, dataset: Dataset, engine: str, precision: str) -> Iterator[tuple[Detect, float]]:
    """What detects, and the threshold that it is deployed with."""
    if path.is_file() or path.suffix in CHECKPOINTS:
        if (engine, precision) != ("auto", "auto"):
            raise DataError(
                f"{path} is a checkpoint, which runs in torch; leave out --engine and --precision, or name a bundle"
            )
        yield _from_checkpoint(path, dataset)
        return
    bundle = Bundle.open(path)
    _same_classes(path, bundle.manifest.classes, dataset)
    pipeline = Pipeline.load(bundle, engine, precision, confidence=EVALUATION_CONFIDENCE)
    try:
        yield pipeline.detect, bundle.manifest.thresholds.confidence
    finally:
        pipeline.close()


def _from_checkpoint(path: Path, dataset: Dataset) -> tuple[Detect, float]:
    from converters.checkpoint import detector_from_checkpoint, load_checkpoint
    from converters.imported import square_canvas
    from edge.torch_detector import torch_detector

    checkpoint = load_checkpoint(path)
    detector = detector_from_checkpoint(checkpoint)
    _same_classes(path, checkpoint.names, dataset)
    return torch_detector(detector, square_canvas(checkpoint.imgsz)), Thresholds().confidence


def _same_classes(path: Path, names: Sequence[str], dataset: Dataset) -> None:
    if tuple(names) != dataset.names:
        raise DataError(
            f"{path} has classes {_listed(names)}, the data set {_listed(dataset.names)}; name a data set of the same classes, or "
            "fine-tune on this one first"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
