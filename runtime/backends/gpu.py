"""What the GPU engines share: owners, buffers, the order of a run. An engine adds how it is loaded and launched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from runtime.backends.device_inputs import DeviceInputs, Uploader
from runtime.backends.inputs import Inputs
from runtime.cuda.driver import Cuda, Stream
from runtime.cuda.owner import Owner
from runtime.cuda.replay import Replay
from runtime.errors import BackendError
from runtime.postprocess import Outputs
from runtime.preprocess import Preprocess

OUTPUT_NAMES = ("boxes", "scores", "classes", "embedding")
BYTES: np.dtype[Any] = np.dtype(np.uint8)
TYPES: dict[str, np.dtype[Any]] = {  # of the outputs
    "float": np.dtype(np.float32),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's static shape and type."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


class DeviceModel(Protocol):
    """A loaded model; lives on the thread that loaded it.

    Attributes:
        images: its input.
        outputs: its outputs, by name.
        graphs: whether a launch may be captured into a CUDA graph.
    """

    images: Tensor
    outputs: dict[str, Tensor]
    graphs: bool

    def launch(self, images: int, outputs: Mapping[str, int]) -> None:
        """Puts one inference on the stream; the addresses of outputs are always the same, that of images may change."""
        ...

    def free(self) -> None:
        """Releases it."""
        ...


class _HasFree(Protocol):
    def free(self) -> None: ...


Freeable = TypeVar("Freeable", bound=_HasFree)
Load = Callable[[Cuda, Stream], DeviceModel]


class GpuBackend:
    """See `Backend`. One engine, its stream and its outputs on one thread, its inputs on another."""

    streams = 1

    def __init__(self, engine: str, precision: str, load: Load) -> None:
        """Loads the model.

        Raises:
            BackendError, MissingPackageError: what `load` raises, or there is no GPU, no package for it, or no memory.
        """
        self.engine, self.precision = engine, precision
        self._owner = Owner(engine)
        with contextlib.ExitStack() as undo:
            undo.callback(self._owner.close)
            self._session = self._owner.call(lambda cuda: _Session(cuda, load))
            undo.callback(self._freed)
            self._uploader = Uploader()
            undo.pop_all()
        self.batch = self._session.model.images.shape[0]
        self._whole: DeviceInputs | None = None

    def inputs(self, preprocess: Preprocess) -> DeviceInputs:
        """See `Backend.inputs`."""
        shape = self._session.model.images.shape
        if shape[1:] != (preprocess.size_wh[1], preprocess.size_wh[0], 3):
            raise BackendError(
                f"the engine takes {shape}, but the frames are letterboxed to {preprocess.size_wh}; convert again"
            )
        return self._uploader.inputs(shape, preprocess)

    def run(self, inputs: Inputs) -> Outputs:
        """See `Backend.run`; the outputs are views of page-locked memory that the next run overwrites.

        Raises:
            BackendError: the engine refuses.
            DeviceLostError: the GPU failed.
        """
        if not isinstance(inputs, DeviceInputs):
            raise TypeError(f"expected inputs that this backend made, but got {type(inputs).__name__}")
        self._owner.call(lambda _: self._session.run(inputs))
        inputs.arrived()
        return self._session.results

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """See `Backend.infer`; the outputs are as those of `run`."""
        expected = self._session.model.images.shape
        if images.shape != expected:
            raise BackendError(f"{self.engine} takes a batch of shape {expected}, but got {images.shape}; convert again")
        if self._whole is None:
            self._whole = self._uploader.inputs(expected, Preprocess((expected[2], expected[1]), stride=1))
        self._whole.fill(images)
        return self.run(self._whole)

    def close(self) -> None:
        """Frees the model, all inputs and the memory of the outputs: no view of them may be read any more."""
        self._freed()
        self._owner.close()
        self._uploader.close()

    def _freed(self) -> None:
        with contextlib.suppress(BackendError):  # a lost device frees nothing, and the process ends anyway
            self._owner.call(lambda _: self._session.free())


class _Session:
    """What is on the engine's own thread."""

    def __init__(self, cuda: Cuda, load: Load) -> None:
        self._held = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            undo.callback(self._held.close)
            self._stream = self._kept(cuda.stream())
            self.model = model = self._kept(load(cuda, self._stream))
            if missing := [name for name in OUTPUT_NAMES if name not in model.outputs]:
                raise BackendError(f"the model has no output {', '.join(missing)}; convert the model again")
            self._done = self._kept(cuda.event())
            sizes = {name: tensor.nbytes for name, tensor in model.outputs.items()}
            self._device = {name: self._kept(cuda.buffer(size)) for name, size in sizes.items()}
            self._host = {name: self._kept(cuda.host_buffer(size)) for name, size in sizes.items()}
            self._replay = self._kept(Replay(self._stream, self._inference))
            undo.pop_all()
        self._addresses = {name: buffer.pointer for name, buffer in self._device.items()}
        arrays = {name: self._host[name].array.view(model.outputs[name].dtype) for name in OUTPUT_NAMES}
        self.results = Outputs(**{name: array.reshape(model.outputs[name].shape) for name, array in arrays.items()})

    def run(self, inputs: DeviceInputs) -> None:
        """Waits for the frames on the GPU, infers, fetches the outputs, and sleeps until they are here."""
        self._stream.wait(inputs.ready)
        if self.model.graphs:
            self._replay.run(inputs.pointer)
        else:
            self._inference(inputs.pointer)
        self._stream.record(self._done)
        self._done.synchronize()

    def free(self) -> None:
        """Gives everything back, what was made last first."""
        self._stream.synchronize()
        self._held.close()

    def _kept(self, thing: Freeable) -> Freeable:
        self._held.callback(thing.free)
        return thing

    def _inference(self, images: int) -> None:
        self.model.launch(images, self._addresses)
        for name in OUTPUT_NAMES:
            self._stream.download(self._host[name].array, self._device[name].pointer)
