"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.backends.inputs import HostInputs, Inputs, images_of
from runtime.errors import BackendError, MissingPackageError, first_line
from runtime.postprocess import Outputs
from runtime.preprocess import Preprocess

_OUTPUTS = ["boxes", "scores", "classes", "embedding"]


class OnnxRuntimeBackend:
    """A graph of ours in an ONNX Runtime session."""

    engine = "onnxruntime"
    batch: int

    def __init__(self, model: Path, precision: str, threads: int, streams: int = 1) -> None:
        """Loads `model` for `threads` in all, so many runs at once included.

        Raises:
            MissingPackageError: onnxruntime is not installed.
            BackendError: the session refuses the graph.
        """
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise MissingPackageError("onnxruntime", "cpu") from error
        self.precision, self.streams, self._model = precision, streams, model
        options = ort.SessionOptions()
        # Whoever calls works with the session's own threads, and these serve all callers.
        options.intra_op_num_threads, options.inter_op_num_threads = threads - streams + 1, 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise BackendError(f"ONNX Runtime refuses {model}: {first_line(error)}; convert the model again") from error
        self.batch = self._session.get_inputs()[0].shape[0]

    def inputs(self, preprocess: Preprocess) -> HostInputs:
        """See `Backend.inputs`."""
        return HostInputs(preprocess.buffer(self.batch), preprocess)

    def run(self, inputs: Inputs) -> Outputs:
        """See `Backend.run`; the outputs are fresh arrays."""
        return self.infer(images_of(inputs))

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Backend.infer`; the outputs are fresh arrays."""
        try:
            boxes, scores, classes, embedding = self._session.run(_OUTPUTS, {"images": images})
        except Exception as error:  # as above
            raise BackendError(
                f"ONNX Runtime cannot run {self._model}: {first_line(error)}; convert the model again"
            ) from error
        return Outputs(boxes, scores, classes, embedding)

    def close(self) -> None:
        """Frees the session."""
        del self._session
