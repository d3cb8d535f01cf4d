"""A torch model as a detector, for accuracy during training and for teachers: the runtime's letterbox and parsing around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.accuracy import EVALUATION_CONFIDENCE, Detect
from converters.graph_passes import TOP_K
from runtime.detections import Detections
from runtime.postprocess import Outputs, Thresholds, detections_from_outputs
from runtime.preprocess import Preprocess

if TYPE_CHECKING:
    import torch
    from ultralytics.nn.tasks import DetectionModel

DetectBatch = Callable[[Sequence[NDArray[np.uint8]]], list[Detections]]


def torch_detector(detector: DetectionModel, preprocess: Preprocess) -> Detect:
    """A function image → detections down to `EVALUATION_CONFIDENCE`; the detector is set to evaluation mode and runs where
    it lies.
    """
    detector.eval()
    canvas = preprocess.buffer()

    def detect(image: NDArray[np.uint8]) -> Detections:
        letterbox = preprocess.letterbox(image, canvas[0])
        return detections_from_outputs(_outputs(detector, canvas, preprocess.scale), 0, letterbox, _thresholds(detector))

    return detect


def batch_detector(detector: DetectionModel, preprocess: Preprocess) -> DetectBatch:
    """The same for several images at once."""
    detector.eval()

    def detect(images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        canvases = preprocess.buffer(len(images))
        letterboxes = [preprocess.letterbox(image, canvas) for image, canvas in zip(images, canvases, strict=True)]
        outputs = _outputs(detector, canvases, preprocess.scale)
        return [
            detections_from_outputs(outputs, row, letterbox, _thresholds(detector)) for row, letterbox in enumerate(letterboxes)
        ]

    return detect


def _is_end_to_end(detector: DetectionModel) -> bool:
    return bool(detector.model[-1].end2end)


def _thresholds(detector: DetectionModel) -> Thresholds:
    return Thresholds(EVALUATION_CONFIDENCE, None) if _is_end_to_end(detector) else Thresholds(EVALUATION_CONFIDENCE)


def _outputs(detector: DetectionModel, canvases: NDArray[np.uint8], scale: float) -> Outputs:
    import torch

    rgb = torch.from_numpy(np.ascontiguousarray(canvases[..., ::-1].transpose(0, 3, 1, 2)))
    with torch.inference_mode():
        images = rgb.to(next(detector.parameters()).device).contiguous(memory_format=torch.channels_last)
        predictions = detector(images.float() * scale)[0].float().cpu()
    return _end_to_end(predictions) if _is_end_to_end(detector) else _top_k(predictions)


def _top_k(predictions: torch.Tensor) -> Outputs:
    """(b, 4 + classes, n) centre boxes → the best (anchor, class) pairs, as `graph_passes.with_top_k` does in ONNX."""
    boxes, scores = predictions[:, :4].transpose(1, 2), predictions[:, 4:].transpose(1, 2)
    best, pair = scores.flatten(1).topk(min(TOP_K, scores[0].numel()))
    anchor, class_id = pair // scores.shape[2], pair % scores.shape[2]
    chosen = boxes.gather(1, anchor[..., None].expand(-1, -1, 4))
    centre, half = chosen[..., :2], chosen[..., 2:] / 2
    xyxy = np.concatenate([(centre - half).numpy(), (centre + half).numpy()], axis=2)
    return Outputs(xyxy, best.numpy(), class_id.numpy(), np.zeros((len(xyxy), 1), np.float32))


def _end_to_end(predictions: torch.Tensor) -> Outputs:
    rows = predictions.numpy()
    return Outputs(rows[..., :4], rows[..., 4], rows[..., 5].astype(np.int64), np.zeros((len(rows), 1), np.float32))
