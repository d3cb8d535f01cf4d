"""A torch model as a detector, for the held-out accuracy during training: the runtime's letterbox and parsing around it."""

from __future__ import annotations

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


def torch_detector(detector: DetectionModel, preprocess: Preprocess) -> Detect:
    """A function image → detections down to `EVALUATION_CONFIDENCE`; the detector is set to evaluation mode and runs where it lies."""
    import torch

    detector.eval()
    canvas = preprocess.buffer()
    end_to_end = bool(detector.model[-1].end2end)
    device = next(detector.parameters()).device
    thresholds = Thresholds(EVALUATION_CONFIDENCE, None) if end_to_end else Thresholds(EVALUATION_CONFIDENCE)

    def detect(image: NDArray[np.uint8]) -> Detections:
        letterbox = preprocess.letterbox(image, canvas[0])
        rgb = np.ascontiguousarray(canvas[..., ::-1].transpose(0, 3, 1, 2))
        with torch.inference_mode():
            predictions = detector(torch.from_numpy(rgb).to(device).float() * preprocess.scale)[0].float().cpu()
        outputs = _end_to_end(predictions) if end_to_end else _top_k(predictions)
        return detections_from_outputs(outputs, 0, letterbox, thresholds)

    return detect


def _top_k(predictions: torch.Tensor) -> Outputs:
    """(1, 4 + classes, n) centre boxes → the best (anchor, class) pairs, as `graph_passes.with_top_k` does in ONNX."""
    boxes, scores = predictions[0, :4].T, predictions[0, 4:].T
    best, pair = scores.flatten().topk(min(TOP_K, scores.numel()))
    anchor, class_id = pair // scores.shape[1], pair % scores.shape[1]
    centre, half = boxes[anchor, :2], boxes[anchor, 2:] / 2
    xyxy = np.concatenate([(centre - half).numpy(), (centre + half).numpy()], axis=1)
    return Outputs(xyxy[None], best.numpy()[None], class_id.numpy()[None], np.zeros((1, 1), np.float32))


def _end_to_end(predictions: torch.Tensor) -> Outputs:
    rows = predictions[0].numpy()
    return Outputs(rows[None, :, :4], rows[None, :, 4], rows[None, :, 5].astype(np.int64), np.zeros((1, 1), np.float32))
