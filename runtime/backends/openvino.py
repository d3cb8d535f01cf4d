"""OpenVINO on the CPU; it reads the same ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from runtime.backends.inputs import HostInputs, Inputs, images_of
from runtime.errors import BackendError, MissingPackageError, first_line
from runtime.postprocess import Outputs
from runtime.preprocess import Preprocess

_OUTPUTS = ("boxes", "scores", "classes", "embedding")


class OpenVinoBackend:
    """A graph of ours compiled by OpenVINO."""

    engine = "openvino"
    batch: int

    def __init__(self, model: Path, precision: str, threads: int) -> None:
        """Compiles `model`.

        Raises:
            MissingPackageError: openvino is not installed.
            BackendError: OpenVINO refuses the graph.
        """
        try:
            import openvino as ov
        except ImportError as error:
            raise MissingPackageError("openvino", "cpu") from error
        self.precision, self._model = precision, model
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        core = ov.Core()
        try:
            self._request = core.compile_model(str(model), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise BackendError(f"OpenVINO refuses {model}: {first_line(error)}; convert the model again") from error
        self.batch = int(self._request.model_inputs[0].shape[0])

    def inputs(self, preprocess: Preprocess) -> HostInputs:
        """See `Backend.inputs`."""
        return HostInputs(preprocess.buffer(self.batch), preprocess)

    def run(self, inputs: Inputs) -> Outputs:
        """See `Backend.run`; the outputs are views of the request's own tensors."""
        return self.infer(images_of(inputs))

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Backend.infer`; the outputs are views of the request's own tensors."""
        try:
            self._request.infer({"images": images}, share_inputs=True, share_outputs=True)
            boxes, scores, classes, embedding = (self._request.get_tensor(name).data for name in _OUTPUTS)
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"OpenVINO cannot run {self._model}: {first_line(error)}; convert the model again") from error
        return Outputs(boxes, scores, classes, embedding)

    def close(self) -> None:
        """Frees the compiled model."""
        del self._request
