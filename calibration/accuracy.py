"""Accuracy on held-out labels: mAP as pycocotools computes it, and F1 at the deployed threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError
from calibration.labels import LabeledImage
from calibration.matching import match_boxes
from runtime.detections import Detections
from runtime.errors import MissingPackageError
from runtime.images import read_image

EVALUATION_CONFIDENCE = 0.001  # the usual floor for mAP, as in Ultralytics' validator
RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision
_MAX_DETECTIONS = 300

Detect = Callable[[NDArray[np.uint8]], Detections]
Pair = tuple[Detections, Detections]  # truth, found


@dataclass(frozen=True, slots=True)
class Accuracy:
    """What an evaluation gives; all 0 to 1.

    Attributes:
        map50_95: mean average precision over IoU .50 to .95.
        map50: the same at IoU .50.
        f1, precision, recall: of boxes above `confidence`, matched at IoU .50 within their class.
        confidence: the deployed threshold.
        images: how many images it rests on.
    """

    map50_95: float
    map50: float
    f1: float
    precision: float
    recall: float
    confidence: float
    images: int

    def as_dict(self) -> dict[str, float]:
        """For JSON and manifests."""
        return {name: round(float(value), 5) for name, value in asdict(self).items()}


def evaluate(detect: Detect, items: Iterable[LabeledImage], names: Sequence[str], confidence: float) -> Accuracy:
    """Runs `detect` (which must keep boxes down to `EVALUATION_CONFIDENCE`) on every image and scores the result.

    Raises:
        DataError: no image to evaluate on.
        SourceError: an image that cannot be decoded.
    """
    return accuracy(pairs_of(detect, items), names, confidence)


def pairs_of(detect: Detect, items: Iterable[LabeledImage]) -> list[Pair]:
    """Truth and what `detect` finds, of every image.

    Raises:
        SourceError: an image that cannot be decoded.
    """
    pairs: list[Pair] = []
    for item in items:
        image = read_image(item.path)
        pairs.append((item.truth((image.shape[1], image.shape[0])), detect(image)))
    return pairs


def accuracy(pairs: Sequence[Pair], names: Sequence[str], confidence: float) -> Accuracy:
    """Scores (truth, found) pairs, one per image.

    Raises:
        DataError: there are none.
    """
    if not pairs:
        raise DataError("there is no held-out image to evaluate on; name some under `val` in data.yaml")
    map50_95, map50 = coco_map(pairs, names)
    precision, recall, f1 = f1_at(pairs, confidence)
    return Accuracy(map50_95, map50, f1, precision, recall, confidence, len(pairs))


def f1_at(pairs: Sequence[Pair], confidence: float) -> tuple[float, float, float]:
    """Precision, recall and F1 of the boxes above a confidence, see `match_boxes`."""
    hits = found_total = truth_total = 0
    for truth, found in pairs:
        found = found.above(confidence)
        found_total, truth_total = found_total + len(found), truth_total + len(truth)
        hits += int((match_boxes(found, truth)[0] >= 0).sum())
    precision, recall = hits / max(found_total, 1), hits / max(truth_total, 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)


def precision_at_recalls(pairs: Sequence[Pair]) -> NDArray[np.float64]:
    """Precision at each of `RECALLS`, at IoU .50, the boxes of all classes pooled: float64 (101,), 0 to 1, falling.

    Interpolated as COCO does: the best precision at that recall or a higher one; 0 beyond the highest recall.
    """
    score = np.concatenate([found.confidence for _, found in pairs])
    hit = np.concatenate([match_boxes(found, truth)[0] >= 0 for truth, found in pairs])
    hits = np.cumsum(hit[np.argsort(-score, kind="stable")])
    recall = hits / max(sum(len(truth) for truth, _ in pairs), 1)
    envelope = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")
    return np.asarray(np.append(envelope, 0.0)[place], np.float64)


def coco_map(pairs: Sequence[Pair], names: Sequence[str]) -> tuple[float, float]:
    """mAP50-95 and mAP50 over up to 300 boxes an image, see `coco_precisions`."""
    precision = coco_precisions(pairs, names)[:, :, :, 0]
    return mean_of_known(precision), mean_of_known(precision[0])


def coco_precisions(pairs: Sequence[Pair], names: Sequence[str]) -> NDArray[np.float64]:
    """Precision at 10 IoUs, 101 recalls, each class and area (all, small, medium, large), by faster-coco-eval (pycocotools'
    arithmetic): float64 (10, 101, classes, 4), 0 to 1, or -1 where there is no true box.

    Raises:
        MissingPackageError: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster  # an extra: only where labels are
    except ImportError as error:
        raise MissingPackageError("faster-coco-eval", "convert") from error
    truths, found = _coco_records(pairs)
    if not truths or not found:
        return np.zeros((10, len(RECALLS), len(names), 4))
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    coco = COCO(
        {"images": [{"id": index} for index in range(len(pairs))], "categories": categories, "annotations": truths, "info": {}}
    )
    scorer = COCOeval_faster(coco, coco.loadRes(found), iouType="bbox", print_function=lambda *_: None)
    scorer.params.maxDets = [1, 10, _MAX_DETECTIONS]
    scorer.evaluate()
    scorer.accumulate()
    return np.asarray(scorer.eval["precision"][..., -1], np.float64)  # with most detections


def _coco_records(pairs: Sequence[Pair]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    truths: list[dict[str, object]] = []
    found: list[dict[str, object]] = []
    for image_id, (truth, detections) in enumerate(pairs):
        for box, class_id in zip(_xywh(truth), truth.class_id.tolist(), strict=True):
            area = box[2] * box[3]
            truths.append(
                {"id": len(truths) + 1, "image_id": image_id, "category_id": class_id, "bbox": box, "area": area, "iscrowd": 0}
            )
        for box, class_id, score in zip(
            _xywh(detections), detections.class_id.tolist(), detections.confidence.tolist(), strict=True
        ):
            found.append({"image_id": image_id, "category_id": class_id, "bbox": box, "score": score})
    return truths, found


def _xywh(detections: Detections) -> list[list[float]]:
    boxes = detections.xyxy
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(float).tolist()  # type: ignore[no-any-return]


def mean_of_known(precision: NDArray[np.float64]) -> float:
    """Of what `coco_precisions` knows; 0 where it knows nothing."""
    known = precision[precision > -1]  # -1 marks classes without truth
    return float(known.mean()) if known.size else 0.0
