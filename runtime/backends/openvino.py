"""OpenVINO on the CPU; it reads the same ONNX files."""

from __future__ import annotations

import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from runtime.backends.inputs import HostInputs, Inputs, images_of
from runtime.backends.openvino_streams import compiled_for
from runtime.errors import BackendError, MissingPackageError, first_line
from runtime.postprocess import Outputs
from runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from openvino import InferRequest

_OUTPUTS = ("boxes", "scores", "classes", "embedding")


class OpenVinoBackend:
    """A graph of ours compiled by OpenVINO."""

    engine = "openvino"
    batch: int

    def __init__(self, model: Path, precision: str, threads: int, streams: int = 1) -> None:
        """Compiles `model` for `threads` in all, shared by so many streams, or by one where OpenVINO makes several wrong.

        Raises:
            MissingPackageError: openvino is not installed.
            BackendError: OpenVINO refuses the graph.
        """
        core = _core()
        self.precision, self.streams, self._model = precision, streams, model

        def compile_for(streams: int) -> Any:
            settings = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
            return core.compile_model(str(model), "CPU", settings)

        try:
            if precision == "int8":
                self._compiled, self.streams = compiled_for(streams, compile_for)
            else:
                self._compiled = compile_for(streams)
        except RuntimeError as error:
            raise BackendError(f"OpenVINO refuses {model}: {first_line(error)}; convert the model again") from error
        self.batch = int(self._compiled.inputs[0].shape[0])
        self._requests = threading.local()  # one for each thread, so that nobody overwrites another's outputs

    def inputs(self, preprocess: Preprocess) -> HostInputs:
        """See `Backend.inputs`."""
        return HostInputs(preprocess.buffer(self.batch), preprocess)

    def run(self, inputs: Inputs) -> Outputs:
        """See `Backend.run`; the outputs are views of this thread's own tensors."""
        return self.infer(images_of(inputs))

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Backend.infer`; the outputs are views of this thread's own tensors."""
        try:
            request = self._request()
            request.infer({"images": images}, share_inputs=True, share_outputs=True)
            boxes, scores, classes, embedding = (request.get_tensor(name).data for name in _OUTPUTS)
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"OpenVINO cannot run {self._model}: {first_line(error)}; convert the model again") from error
        return Outputs(boxes, scores, classes, embedding)

    def close(self) -> None:
        """Frees the compiled model."""
        del self._requests, self._compiled

    def _request(self) -> InferRequest:
        if (request := getattr(self._requests, "request", None)) is None:
            request = self._requests.request = self._compiled.create_infer_request()
        return cast("InferRequest", request)


@cache
def _core() -> Any:
    """OpenVINO's one core in this process, which is never freed.

    With each core its CPU plugin gives the thread an alternate signal stack (for AMX; openvino#11894), and takes it back with
    the core. Cores freed in another order than the reverse leave a stack that is unmapped: the next signal with a handler in
    Python, such as SIGTERM, SIGHUP, or SIGCHLD of PyTorch's loaders, then ends the process without a word.
    """
    try:
        import openvino
    except ImportError as error:
        raise MissingPackageError("openvino", "cpu") from error
    return openvino.Core()
