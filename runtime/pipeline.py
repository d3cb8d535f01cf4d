"""One batch's way, on one screen: prepare → infer → parse → results."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from runtime.backends import Backend, open_backend, open_larger, warm
from runtime.backends.inputs import Inputs
from runtime.bundle import Bundle
from runtime.detections import Detections
from runtime.errors import BackendError, ConfigError
from runtime.frame import Frame
from runtime.postprocess import Outputs, Thresholds, detections_from_outputs
from runtime.preprocess import Letterbox
from runtime.regions import Region, cropped, region_of


@dataclass(frozen=True, slots=True)
class Result:
    """What the daemon knows of one frame.

    Attributes:
        frame: the frame itself.
        detections: boxes in its pixels.
        embedding: float32 (d,), L2-normalised.
        bundle: digest of the model that looked.
        preprocess_s, infer_s, postprocess_s: time of each stage; `infer_s` is that of the frame's whole batch.
        age_s: from capture to this result.
        zones: zone → bool (n,), which detections stand in it.
    """

    frame: Frame
    detections: Detections
    embedding: NDArray[np.float32]
    bundle: str
    preprocess_s: float
    infer_s: float
    postprocess_s: float
    age_s: float
    zones: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """A frame in its row of a batch.

    Attributes:
        frame: the frame.
        letterbox: where its region came to lie.
        left, top: where its region begins in the frame, pixels.
        preprocess_s: time it took.
    """

    frame: Frame
    letterbox: Letterbox
    left: int
    top: int
    preprocess_s: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames in an input buffer, ready to run on the pipeline that owns the buffer."""

    pipeline: Pipeline
    backend: Backend
    inputs: Inputs
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Serving:
    """Whom a pipeline serves.

    Attributes:
        cameras: how many.
        streams: how many batches are run at once; an engine that cannot runs them one after the other.
        batch: 1; or how many frames one run may take; or `auto`: as many as the release has a file for, if it was measured
            here to be faster for that many cameras than one by one.
        unmeasured: the engine to take where nobody has measured, instead of measuring now.
    """

    cameras: int = 1
    streams: int = 1
    batch: int | Literal["auto"] = 1
    unmeasured: str | None = None


_ALONE = Serving()


class Pipeline:
    """A bundle, loaded and warm, with its input buffers.

    Attributes:
        backend: the engine for a lone frame.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        thresholds: Thresholds,
        larger: Backend | None = None,
        pays_from: int = 2,
    ) -> None:
        """Warms the engine.

        Args:
            bundle: the release.
            backend: its engine.
            thresholds: for its detections.
            larger: the same model with a batch of several frames.
            pays_from: it is taken when at least so many frames wait.
        """
        self.bundle, self.backend, self.thresholds = bundle, backend, thresholds
        self._larger, self._pays_from = larger, pays_from
        self._free: dict[int, list[Inputs]] = {id(each): [] for each in self._backends}
        self._buffers = 0
        self._idle = {id(each): threading.Semaphore(each.streams) for each in self._backends}
        for each in self._backends:
            warm(each, bundle.preprocess.buffer(each.batch))
        self.reserve(backend.streams + 1)
        self.detect(np.zeros((8, 8, 3), np.uint8))

    @property
    def _backends(self) -> list[Backend]:
        return [self.backend, self._larger] if self._larger else [self.backend]

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        engine: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        confidence: float | Mapping[str, float] | None = None,
        serving: Serving = _ALONE,
    ) -> Pipeline:
        """Loads and warms a bundle.

        Args:
            bundle: the release.
            engine: as of `open_backend`.
            precision: the same.
            threads: the same.
            confidence: replaces the release's own threshold, for all classes or by class name.
            serving: whom it serves.

        Raises:
            ConfigError: `confidence` names a class that the bundle does not have.
            BackendError, BundleError, MissingPackageError: as `open_backend` does.
        """
        thresholds = thresholds_of(bundle, confidence)
        with ExitStack() as undo:  # an engine on a GPU holds threads and memory until it is closed
            backend = open_backend(bundle, engine, precision, threads, serving.unmeasured, serving.streams)
            undo.callback(backend.close)
            larger, pays_from = open_larger(bundle, backend, serving.batch, serving.cameras, threads)
            if larger is not None:
                undo.callback(larger.close)
            pipeline = cls(bundle, backend, thresholds, larger, pays_from)
            undo.pop_all()
        return pipeline

    @property
    def batch(self) -> int:
        """Frames that one run takes at most."""
        return max(each.batch for each in self._backends)

    def reserve(self, batches: int) -> None:
        """Lets so many batches be under way at once; from the start one more than there are streams.

        Raises:
            BackendError: there is no memory for them.
        """
        for each in self._backends:
            self._free[id(each)] += [each.inputs(self.bundle.preprocess) for _ in range(self._buffers, batches)]
        self._buffers = max(self._buffers, batches)

    def next_of(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        """Which of the waiting frames the next run should take: as many as fit, or one alone where a batch does not pay."""
        fitting = frames[: self.batch]
        return fitting if len(fitting) >= self._pays_from else frames[:1]

    def prepare(self, frames: Sequence[Frame], regions: Mapping[str, Region | None] = {}) -> Batch:
        """Letterboxes up to `batch` frames into a free buffer, see `reserve`."""
        backend = next(each for each in self._backends if each.batch >= len(frames))
        inputs = self._free[id(backend)].pop()
        return Batch(
            self, backend, inputs, [_row(inputs, row, frame, regions.get(frame.camera)) for row, frame in enumerate(frames)]
        )

    def run(self, batch: Batch) -> list[Result]:
        """Detects in each frame of a prepared batch and frees its buffer; several threads may.

        Raises:
            BackendError: the engine failed; no frame of the batch has a result.
        """
        with self._idle[id(batch.backend)]:
            start = time.perf_counter()
            try:
                outputs = batch.backend.run(batch.inputs)
            finally:
                self._free[id(batch.backend)].append(batch.inputs)
            infer_s = time.perf_counter() - start
            try:
                return [self._parse(outputs, index, row, infer_s) for index, row in enumerate(batch.rows)]
            except ValueError as error:  # boxes that are no numbers
                engine = self.backend.engine
                raise BackendError(f"{engine} gave outputs that are no detections: {error}; convert again") from error

    def _parse(self, outputs: Outputs, index: int, row: Row, infer_s: float) -> Result:
        start = time.perf_counter()
        detections = detections_from_outputs(outputs, index, row.letterbox, self.thresholds).shifted(row.left, row.top)
        postprocess_s, age_s = time.perf_counter() - start, time.monotonic() - row.frame.captured_monotonic_s
        embedding, digest = outputs.embedding[index].copy(), self.bundle.digest
        return Result(row.frame, detections, embedding, digest, row.preprocess_s, infer_s, postprocess_s, age_s)

    def process(self, frame: Frame) -> Result:
        """Detects in one frame."""
        return self.run(self.prepare([frame]))[0]

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Detects in a lone image: uint8 (h, w, 3) BGR."""
        return self.process(Frame(image, "image", 0, time.monotonic(), time.time())).detections

    def close(self) -> None:
        """Releases the engines."""
        for each in self._backends:
            each.close()


def thresholds_of(bundle: Bundle, confidence: float | Mapping[str, float] | None) -> Thresholds:
    """The release's thresholds, with what the configuration replaces.

    Raises:
        ConfigError: a class that the bundle does not have.
    """
    released = bundle.thresholds
    if confidence is None:
        return released
    if isinstance(confidence, Mapping):
        names = bundle.manifest.classes
        if unknown := sorted(set(confidence) - set(names)):
            like = get_close_matches(unknown[0], names, 3) or names[:10]
            raise ConfigError(
                f"model.confidence names {', '.join(unknown)}, which the bundle does not have; it has {', '.join(like)}"
                f"{', …' if len(names) > len(like) else ''}"
            )
        return dataclasses.replace(released, by_class=tuple(confidence.get(name, released.confidence) for name in names))
    return dataclasses.replace(released, confidence=confidence)


def _row(inputs: Inputs, row: int, frame: Frame, region: Region | None) -> Row:
    start = time.perf_counter()
    left, top, right, bottom = region_of(frame.size_wh, region)
    letterbox = inputs.put(row, cropped(frame.picture, (left, top, right, bottom)))
    return Row(frame, letterbox, left, top, time.perf_counter() - start)
