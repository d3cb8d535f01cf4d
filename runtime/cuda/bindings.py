"""CUDA through NVIDIA's own bindings of the driver (extra `cuda`).

The driver's calls one to one rather than cuda-core's objects: return codes stay visible, the API has not changed since
12.6, and cuda-core needs these bindings too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from runtime.cuda.driver import Argument, Buffer, Bytes, Event, Graph, HostBuffer, Kernel, Launch, Stream
from runtime.cuda.failures import failure
from runtime.errors import BackendError, MissingPackageError


class Driver:
    """The module, with return codes checked."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, name: str, *arguments: object) -> Any:
        """Calls `name`; what it returns beside the code.

        Raises:
            BackendError, DeviceLostError: the code is not CUDA_SUCCESS.
        """
        code, *values = getattr(self.module, name)(*arguments)
        if int(code) != 0:
            raise failure(name, getattr(code, "name", str(int(code))), self._text(code))
        return values[0] if values else None

    def _text(self, code: object) -> str:
        asked, text = self.module.cuGetErrorString(code)
        return text.decode(errors="replace") if int(asked) == 0 and text else ""


class BindingsCuda:
    """See `Cuda`."""

    def __init__(self, module: Any = None) -> None:
        """Takes the primary context of the first visible GPU; `module` stands in for `cuda.bindings.driver`.

        Raises:
            MissingPackageError: cuda-bindings is not installed.
            BackendError: the driver refuses, or is older than the bindings.
        """
        self._driver = call = Driver(module or _module())
        try:
            call("cuInit", 0)
        except RuntimeError as error:  # the bindings' own: no libcuda
            raise BackendError(f"cuda-bindings finds no driver: {error}") from error
        self._device = call("cuDeviceGet", 0)
        self._modules: list[Any] = []
        call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", self._device))

    def buffer(self, size: int) -> Buffer:
        """See `Cuda`."""
        return _Buffer(self._driver, size)

    def host_buffer(self, size: int) -> HostBuffer:
        """See `Cuda`."""
        return _HostBuffer(self._driver, size)

    def stream(self) -> Stream:
        """See `Cuda`."""
        return _Stream(self._driver)

    def event(self) -> Event:
        """See `Cuda`."""
        return _Event(self._driver)

    def kernel(self, cubin: bytes, name: str) -> Kernel:
        """See `Cuda`."""
        self._modules.append(self._driver("cuModuleLoadData", cubin))
        return _Kernel(self._driver("cuModuleGetFunction", self._modules[-1], name.encode()))

    def close(self) -> None:
        """See `Cuda`."""
        while self._modules:
            self._driver("cuModuleUnload", self._modules.pop())
        self._driver("cuDevicePrimaryCtxRelease", self._device)


def _module() -> Any:
    try:
        from cuda.bindings import driver  # an extra: only devices with an NVIDIA GPU need it
    except ImportError as error:
        raise MissingPackageError("cuda-bindings", "cuda") from error
    return driver


class _Buffer:
    def __init__(self, call: Driver, size: int) -> None:
        self._call, self.size = call, size
        self.pointer = int(call("cuMemAlloc", size))

    def free(self) -> None:
        self._call("cuMemFree", self.pointer)


class _HostBuffer:
    def __init__(self, call: Driver, size: int) -> None:
        self._call = call
        self._address = int(call("cuMemHostAlloc", size, 0))
        self.array: Bytes = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self._address))

    def free(self) -> None:
        self._call("cuMemFreeHost", self._address)


class _Event:
    def __init__(self, call: Driver) -> None:
        flags = call.module.CUevent_flags
        self._call = call
        # Sleeping costs some 20 to 50 µs on waking, and spares a core that would spin through every inference.
        self.native = call("cuEventCreate", int(flags.CU_EVENT_BLOCKING_SYNC) | int(flags.CU_EVENT_DISABLE_TIMING))

    def synchronize(self) -> None:
        self._call("cuEventSynchronize", self.native)

    def free(self) -> None:
        self._call("cuEventDestroy", self.native)


class _Kernel:
    def __init__(self, native: Any) -> None:
        self.native = native


class _Graph:
    def __init__(self, call: Driver, graph: Any, stream: Any) -> None:
        self._call, self._stream = call, stream
        try:
            self._ready = call("cuGraphInstantiate", graph, 0)
        finally:
            call("cuGraphDestroy", graph)

    def launch(self) -> None:
        self._call("cuGraphLaunch", self._ready, self._stream)

    def free(self) -> None:
        self._call("cuGraphExecDestroy", self._ready)


class _Stream:
    def __init__(self, call: Driver) -> None:
        self._call = call
        self._stream = call("cuStreamCreate", int(call.module.CUstream_flags.CU_STREAM_NON_BLOCKING))
        self.handle = int(self._stream)

    def upload(self, pointer: int, host: Bytes) -> None:
        self._call("cuMemcpyHtoDAsync", pointer, host.ctypes.data, host.nbytes, self._stream)

    def download(self, host: Bytes, pointer: int) -> None:
        self._call("cuMemcpyDtoHAsync", host.ctypes.data, pointer, host.nbytes, self._stream)

    def launch(self, kernel: Kernel, grid: Launch, block: Launch, arguments: Sequence[Argument]) -> None:
        values = [np.array(argument) for argument in arguments]
        places = np.array([value.ctypes.data for value in values], np.uint64)  # the call copies what they point at
        self._call("cuLaunchKernel", kernel.native, *grid, 1, *block, 1, 0, self._stream, places.ctypes.data, 0)

    def record(self, event: Event) -> None:
        self._call("cuEventRecord", event.native, self._stream)

    def wait(self, event: Event) -> None:
        self._call("cuStreamWaitEvent", self._stream, event.native, 0)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        mode = self._call.module.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            work()
        except BaseException:
            self._end_spoilt()
            raise
        return _Graph(self._call, self._call("cuStreamEndCapture", self._stream), self._stream)

    def _end_spoilt(self) -> None:
        """A capture must be ended, whatever became of it, or the stream takes nothing else."""
        code, graph = self._call.module.cuStreamEndCapture(self._stream)
        if int(code) == 0:
            self._call("cuGraphDestroy", graph)

    def free(self) -> None:
        self._call("cuStreamDestroy", self._stream)
