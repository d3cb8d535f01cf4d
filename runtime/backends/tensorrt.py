"""TensorRT 8.5 to 11 and TensorRT-RTX: plans of this device, from the sealed cache or built from the bundle's ONNX."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from runtime.backends.gpu import BYTES, TYPES, DeviceModel, GpuBackend, Tensor
from runtime.cuda.driver import NO_GPU, Cuda, Stream
from runtime.cuda.failures import lost_device
from runtime.errors import BackendError
from runtime.tensorrt.callbacks import process_logger
from runtime.tensorrt.device import find_device
from runtime.tensorrt.engine_cache import EngineCache, EngineRequest, engine_for
from runtime.tensorrt.engine_from_onnx import FOREIGN, Precision, sentence
from runtime.tensorrt.flavour import Flavour, load_flavour

if TYPE_CHECKING:  # typings/tensorrt: the module itself is an extra
    import tensorrt

log = logging.getLogger(__name__)

_INPUT = "images"
_LAST = 3  # messages of a failed call; one failure logs about as many
_TYPE_NAMES = {"FLOAT": "float", "INT32": "int32", "INT64": "int64"}  # INT64 from 10 on; earlier ones give INT32 for it


def open_tensorrt(engine: str, model: Path, precision: str) -> GpuBackend:
    """Loads `model` with `tensorrt` or `tensorrt-rtx`; minutes, where this device has no plan of it yet.

    Raises:
        MissingPackageError: that TensorRT is not installed.
        BackendError: there is no GPU, or TensorRT refuses the graph, the GPU or the plan it has just built.
        CacheError: there is no place for the plan.
    """
    if find_device() is None:
        raise BackendError(f"{engine} cannot run {model}: {NO_GPU}")
    flavour = load_flavour(engine)
    request = EngineRequest(model, cast(Precision, precision))

    def load(_: Cuda, stream: Stream) -> DeviceModel:
        return TensorRtModel(flavour, loaded_engine(flavour, request), stream)

    return GpuBackend(engine, precision, load)


def loaded_engine(flavour: Flavour, request: EngineRequest, cache: EngineCache | None = None) -> tensorrt.ICudaEngine:
    """The engine of a request; a kept plan that does not load is built again. Needs a current CUDA context.

    Raises:
        BackendError, CacheError, MissingPackageError: as `engine_for`, or the new plan does not load either.
        DeviceLostError: the GPU failed.
    """
    engine, told = deserialised(flavour, engine_for(request, cache, flavour))
    if engine is None:
        log.warning("the engine of %s does not load and is built again: %s", request.onnx_path, told)
        engine, told = deserialised(flavour, engine_for(request, cache, flavour, afresh=True))
    if engine is None:
        raise BackendError(
            f"{flavour.name} {flavour.version} does not load its own engine of {request.onnx_path}: {told}; "
            "update the GPU's driver, or use another engine"
        )
    return engine


def deserialised(flavour: Flavour, plan: bytes) -> tuple[tensorrt.ICudaEngine | None, str]:
    """The engine that a plan of this device holds, or None and why TensorRT does not load it.

    Raises:
        DeviceLostError: the GPU failed.
    """
    logger, told = process_logger(flavour.trt)
    before, engine = len(told.errors), None
    try:
        engine = cast("tensorrt.ICudaEngine | None", flavour.trt.Runtime(logger).deserialize_cuda_engine(plan))
    except FOREIGN as error:
        told.errors.append(str(error))
    said = told.errors[before:]
    if engine is None and (lost := lost_device(said)):
        raise lost
    return engine, sentence(said)


class TensorRtModel:
    """See `DeviceModel`."""

    graphs = True

    def __init__(self, flavour: Flavour, engine: tensorrt.ICudaEngine, stream: Stream) -> None:
        """Makes the engine's execution context.

        Raises:
            BackendError: tensors of other types than the kit's graphs have, or no memory.
        """
        self._stream, (_, self._told) = stream, process_logger(flavour.trt)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        if _INPUT not in names:
            raise BackendError(f"the engine has no input {_INPUT!r} but {', '.join(names)}; convert the model again")
        self.images = Tensor(_shape(engine, _INPUT), BYTES)
        self.outputs = {name: _tensor(engine, name) for name in names if name != _INPUT}
        self._engine: tensorrt.ICudaEngine | None = engine  # a context does not keep it alive in every version
        self._context = cast("tensorrt.IExecutionContext | None", engine.create_execution_context())
        if self._context is None:
            raise self._failed("cannot make an execution context")

    def launch(self, images: int, outputs: Mapping[str, int]) -> None:
        """See `DeviceModel.launch`."""
        context = cast("tensorrt.IExecutionContext", self._context)
        for name, address in ((_INPUT, images), *outputs.items()):
            if not context.set_tensor_address(name, address):
                raise self._failed(f"refuses the address of {name!r}")
        if not context.execute_async_v3(self._stream.handle):
            raise self._failed("cannot run the engine")

    def free(self) -> None:
        """See `DeviceModel.free`; the context goes first."""
        self._context = None
        self._engine = None

    def _failed(self, what: str) -> BackendError:
        # Not cleared before each call: the builder of another release collects in the same list.
        last = self._told.errors[-_LAST:]
        said = BackendError(f"TensorRT {what}: {sentence(last)}; build the engine again, or use another one")
        return lost_device(last) or said


def _shape(engine: tensorrt.ICudaEngine, name: str) -> tuple[int, ...]:
    return tuple(cast(Any, engine.get_tensor_shape(name)))


def _tensor(engine: tensorrt.ICudaEngine, name: str) -> Tensor:
    kind = engine.get_tensor_dtype(name).name
    if kind not in _TYPE_NAMES:
        raise BackendError(f"output {name!r} of the engine is {kind}, not {', '.join(_TYPE_NAMES)}; convert the model again")
    return Tensor(_shape(engine, name), TYPES[_TYPE_NAMES[kind]])
