"""The contract with CUDA, and the choice of the package that fulfils it.

All of it is called on the thread that opened it (see `owner`). Whatever is made here is freed before `Cuda.close`.
Every method raises `BackendError`, or `DeviceLostError` where the context is gone for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BackendError, MissingPackageError
from runtime.tensorrt.device import find_device

Bytes = NDArray[np.uint8]
Launch = tuple[int, int]  # blocks or threads along x and y
Argument = np.uint64 | np.int32  # a kernel's: a pointer or a number


class Buffer(Protocol):
    """Memory of the GPU: `pointer` is its address there, `size` in bytes."""

    pointer: int
    size: int

    def free(self) -> None:
        """Gives it back; nothing may still use it."""
        ...


class HostBuffer(Protocol):
    """Page-locked memory of the host: `array` is uint8 (size,), which any thread may read and write."""

    array: Bytes

    def free(self) -> None:
        """Gives it back; neither a copy nor a view of `array` may still use it."""
        ...


class Event(Protocol):
    """A place in a stream. `native` is the package's own object."""

    native: Any

    def synchronize(self) -> None:
        """Sleeps until what was recorded is done; returns at once where nothing was."""
        ...

    def free(self) -> None:
        """Gives it back."""
        ...


class Graph(Protocol):
    """Work that was captured from a stream."""

    def launch(self) -> None:
        """Puts all of it on the stream that it came from."""
        ...

    def free(self) -> None:
        """Gives it back."""
        ...


class Kernel(Protocol):
    """A function that runs on the GPU. `native` is the package's own object."""

    native: Any


class Stream(Protocol):
    """Work in order. `handle` is the address that TensorRT and ONNX Runtime take."""

    handle: int

    def upload(self, pointer: int, host: Bytes) -> None:
        """Copies contiguous page-locked bytes to the GPU, later."""
        ...

    def download(self, host: Bytes, pointer: int) -> None:
        """Copies from the GPU into contiguous page-locked bytes, later."""
        ...

    def launch(self, kernel: Kernel, grid: Launch, block: Launch, arguments: Sequence[Argument]) -> None:
        """Runs a kernel, later."""
        ...

    def record(self, event: Event) -> None:
        """Marks this place; an earlier mark of that event is forgotten."""
        ...

    def wait(self, event: Event) -> None:
        """Lets what follows here wait for the place that is marked now, on whichever stream."""
        ...

    def synchronize(self) -> None:
        """Sleeps until all of it is done."""
        ...

    def capture(self, work: Callable[[], None]) -> Graph:
        """Keeps what `work` puts on this stream instead of doing it.

        In thread-local mode: what other threads ask of CUDA meanwhile, such as memory for the next release's engine,
        does not spoil it. Raises BackendError where it cannot be captured; the stream is as before.
        """
        ...

    def free(self) -> None:
        """Gives it back."""
        ...


class Cuda(Protocol):
    """The primary context of a GPU, which TensorRT and ONNX Runtime use too, current on this thread."""

    def buffer(self, size: int) -> Buffer:
        """`size` bytes of the GPU."""
        ...

    def host_buffer(self, size: int) -> HostBuffer:
        """`size` page-locked bytes of the host."""
        ...

    def stream(self) -> Stream:
        """A stream that does not wait for the default one."""
        ...

    def event(self) -> Event:
        """An event; threads that wait for it sleep."""
        ...

    def kernel(self, cubin: bytes, name: str) -> Kernel:
        """A function of a compiled module, kept until `close`."""
        ...

    def close(self) -> None:
        """Lets go of the context."""
        ...


NO_GPU = (
    "there is no NVIDIA GPU here, or its driver does not answer (see nvidia-smi); run on a device that has one, "
    "or take engine onnxruntime or openvino"
)


def _bindings() -> Cuda:
    from runtime.cuda.bindings import BindingsCuda  # an extra: only devices with an NVIDIA GPU need it

    return BindingsCuda()


def _pycuda() -> Cuda:
    from runtime.cuda.pycuda import PycudaCuda  # an extra, as above

    return PycudaCuda()


IMPLEMENTATIONS: dict[str, Callable[[], Cuda]] = {"cuda": _bindings, "pycuda": _pycuda}  # by the extra that brings it


def open_cuda() -> Cuda:
    """CUDA on this thread, for the first GPU that CUDA_VISIBLE_DEVICES leaves, by the first package that is installed.

    Raises:
        BackendError: there is no GPU.
        MissingPackageError: neither package is installed.
    """
    if find_device() is None:
        raise BackendError(NO_GPU)
    return first_installed(IMPLEMENTATIONS.values())


def first_installed(implementations: Iterable[Callable[[], Cuda]]) -> Cuda:
    """The first whose package is there.

    Raises:
        MissingPackageError: none is; names the first's extra.
        BackendError: the one that is there cannot be opened.
    """
    missing: MissingPackageError | None = None
    for opened in implementations:
        try:
            return opened()
        except MissingPackageError as error:
            missing = missing or error
    raise missing or BackendError("there is no implementation of CUDA to choose from; please report this")
