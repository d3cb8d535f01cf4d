"""One frame's way, on one screen: prepare → infer → parse → result."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.backends import Backend, open_backend, warm
from runtime.bundle import Bundle
from runtime.detections import Detections
from runtime.frame import Frame
from runtime.postprocess import Thresholds, detections_from_outputs


@dataclass(frozen=True, slots=True)
class Result:
    """What the daemon knows of one frame.

    Attributes:
        frame: the frame itself.
        detections: boxes in its pixels.
        embedding: float32 (d,), L2-normalised.
        bundle: digest of the model that looked.
        preprocess_s, infer_s, postprocess_s: time of each stage.
        age_s: from capture to this result.
    """

    frame: Frame
    detections: Detections
    embedding: NDArray[np.float32]
    bundle: str
    preprocess_s: float
    infer_s: float
    postprocess_s: float
    age_s: float


class Pipeline:
    """A bundle, loaded and warm, with its input buffer."""

    def __init__(self, bundle: Bundle, backend: Backend, thresholds: Thresholds) -> None:
        self.bundle, self.backend, self.thresholds = bundle, backend, thresholds
        self._preprocess = bundle.preprocess
        self._canvas = self._preprocess.buffer(bundle.manifest.outputs.batch)
        warm(backend, self._canvas)
        self.detect(np.zeros((8, 8, 3), np.uint8))

    @classmethod
    def load(
        cls, bundle: Bundle, engine: str = "auto", precision: str = "auto", threads: int = 0, confidence: float | None = None
    ) -> Pipeline:
        """Loads and warms a bundle; `confidence` replaces the release's own threshold. Raises like `open_backend`."""
        released = bundle.thresholds
        thresholds = released if confidence is None else Thresholds(confidence, released.iou)
        return cls(bundle, open_backend(bundle, engine, precision, threads), thresholds)

    def process(self, frame: Frame) -> Result:
        """Detects in one frame."""
        start = time.perf_counter()
        letterbox = self._preprocess.letterbox(frame.image, self._canvas[0])
        prepared = time.perf_counter()
        outputs = self.backend.infer(self._canvas)
        inferred = time.perf_counter()
        detections = detections_from_outputs(outputs, 0, letterbox, self.thresholds)
        parsed = time.perf_counter()
        return Result(
            frame, detections, outputs.embedding[0].copy(), self.bundle.digest,
            prepared - start, inferred - prepared, parsed - inferred, time.monotonic() - frame.captured_monotonic_s,
        )  # fmt: skip

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Detects in a lone image: uint8 (h, w, 3) BGR."""
        return self.process(Frame(image, "image", 0, time.monotonic(), time.time())).detections

    def close(self) -> None:
        """Releases the engine."""
        self.backend.close()
