"""ONNX Runtime on an NVIDIA GPU: the bundle's FP32 file, on our stream, reading and writing our buffers."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from runtime.backends.gpu import BYTES, TYPES, DeviceModel, GpuBackend, Tensor
from runtime.cuda.driver import NO_GPU, Cuda, Stream
from runtime.cuda.failures import lost_device
from runtime.errors import BackendError, MissingPackageError, first_line
from runtime.tensorrt.device import find_device

ENGINE = "onnxruntime-cuda"
_PROVIDER = "CUDAExecutionProvider"
_REMEDY = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'edgeloop[gpu]'"


def open_onnxruntime_cuda(model: Path, precision: str) -> GpuBackend:
    """Loads `model` with ONNX Runtime's CUDA provider.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        BackendError: there is no GPU, the provider cannot be had, or it refuses the graph.
    """
    if find_device() is None:
        raise BackendError(f"{ENGINE} cannot run {model}: {NO_GPU}")
    ort = provider_module()

    def load(_: Cuda, stream: Stream) -> DeviceModel:
        return CudaSession(ort, model, stream)

    return GpuBackend(ENGINE, precision, load)


def provider_module() -> ModuleType:
    """Onnxruntime, if it was built with CUDA.

    Raises:
        MissingPackageError: it is not installed.
        BackendError: it is the build for CPUs, which hides onnxruntime-gpu where both are installed.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingPackageError("onnxruntime-gpu", "gpu") from error
    if _PROVIDER not in ort.get_available_providers():
        raise BackendError(
            f"the onnxruntime {ort.__version__} that is installed has no CUDA provider; install it with: {_REMEDY}"
        )
    module: ModuleType = ort
    return module


class CudaSession:
    """See `DeviceModel`."""

    # ONNX Runtime's own graphs need one session a buffer, and a stream captured from outside would leave out, unnoticed,
    # what it may do on the CPU between two kernels.
    graphs = False

    def __init__(self, ort: Any, model: Path, stream: Stream) -> None:
        """Opens the session on `stream`.

        Raises:
            BackendError: the graph is refused, or the provider does not load and ONNX Runtime would run on the CPU.
        """
        self._ort, self._model = ort, model
        self._bindings: dict[int, Any] = {}
        self._asynchronous = ort.RunOptions()
        self._asynchronous.add_run_config_entry("disable_synchronize_execution_providers", "1")  # the stream's event does it
        if hasattr(ort, "preload_dlls"):  # from 1.21 on: CUDA and cuDNN of NVIDIA's wheels, which no loader path names
            with contextlib.redirect_stdout(sys.stderr):  # it prints, and the standard output is the daemon's summary
                ort.preload_dlls()
        try:
            self._session = ort.InferenceSession(str(model), _options(ort), providers=_providers(stream))
        except Exception as error:  # onnxruntime's exceptions share no public base class
            raise self._failed("refuses", error) from error
        if _PROVIDER not in self._session.get_providers():
            raise BackendError(
                "ONNX Runtime falls back to the CPU: its CUDA provider does not load, since CUDA or cuDNN of the version that it "
                f"was built for is missing or the driver is too old; its log names the library. Install both with: {_REMEDY}"
            )
        self._session.disable_fallback()
        (images,) = self._session.get_inputs()
        self.images = Tensor(tuple(images.shape), BYTES)
        self.outputs = {node.name: Tensor(tuple(node.shape), TYPES[node.type[7:-1]]) for node in self._session.get_outputs()}

    def launch(self, images: int, outputs: Mapping[str, int]) -> None:
        """See `DeviceModel.launch`."""
        if images not in self._bindings:
            self._bindings[images] = self._bound(images, outputs)
        try:
            self._session.run_with_iobinding(self._bindings[images], self._asynchronous)
        except Exception as error:  # as above
            raise self._failed("cannot run", error) from error

    def free(self) -> None:
        """See `DeviceModel.free`."""
        self._bindings.clear()
        self._session = None

    def _bound(self, images: int, outputs: Mapping[str, int]) -> Any:
        binding = self._session.io_binding()
        binding.bind_input("images", "cuda", 0, np.uint8, self.images.shape, images)
        for name, address in outputs.items():
            tensor = self.outputs[name]
            binding.bind_output(name, "cuda", 0, tensor.dtype.type, tensor.shape, address)
        return binding

    def _failed(self, what: str, error: Exception) -> BackendError:
        said = BackendError(f"ONNX Runtime {what} {self._model} on the GPU: {first_line(error)}; convert the model again")
        return lost_device([str(error)]) or said


def _options(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _providers(stream: Stream) -> list[object]:
    settings = {"device_id": "0", "user_compute_stream": str(stream.handle)}
    return [(_PROVIDER, settings), "CPUExecutionProvider"]
