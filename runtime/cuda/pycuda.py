"""CUDA through pycuda (extra `pycuda`), for devices whose CUDA the bindings do not know. It has no graphs (2026.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from runtime.cuda.driver import Argument, Buffer, Bytes, Event, Graph, HostBuffer, Kernel, Launch, Stream
from runtime.cuda.failures import failure
from runtime.errors import BackendError, MissingPackageError


class PycudaCuda:
    """See `Cuda`."""

    def __init__(self) -> None:
        """Takes the primary context of the first visible GPU.

        Raises:
            MissingPackageError: pycuda is not installed.
            BackendError: the driver refuses.
        """
        try:
            import pycuda.driver as module
        except ImportError as error:
            raise MissingPackageError("pycuda", "pycuda") from error
        self._module = module
        with told(module):
            module.init()
            self._context = module.Device(0).retain_primary_context()
            self._context.push()
        self._modules: list[Any] = []

    def buffer(self, size: int) -> Buffer:
        """See `Cuda`."""
        return _Buffer(self._module, size)

    def host_buffer(self, size: int) -> HostBuffer:
        """See `Cuda`."""
        return _HostBuffer(self._module, size)

    def stream(self) -> Stream:
        """See `Cuda`."""
        return _Stream(self._module)

    def event(self) -> Event:
        """See `Cuda`."""
        return _Event(self._module)

    def kernel(self, cubin: bytes, name: str) -> Kernel:
        """See `Cuda`."""
        with told(self._module):
            self._modules.append(self._module.module_from_buffer(cubin))
            return _Kernel(self._modules[-1].get_function(name))

    def close(self) -> None:
        """See `Cuda`."""
        with told(self._module):
            self._modules.clear()
            self._context.pop()
            self._context.detach()


@contextmanager
def told(module: Any) -> Iterator[None]:
    """Makes pycuda's exceptions ours; they read `cuMemAlloc failed: out of memory`."""
    try:
        yield
    except module.Error as error:
        call, _, text = str(error).partition(" failed: ")
        raise failure(call, "", text or str(error)) from error


class _Buffer:
    def __init__(self, module: Any, size: int) -> None:
        self._module, self.size = module, size
        with told(module):
            self._memory = module.mem_alloc(size)
        self.pointer = int(self._memory)

    def free(self) -> None:
        with told(self._module):
            self._memory.free()


class _HostBuffer:
    def __init__(self, module: Any, size: int) -> None:
        self._module = module
        with told(module):
            self.array: Bytes = module.pagelocked_empty(size, np.uint8)

    def free(self) -> None:
        with told(self._module):
            self.array.base.free()  # type: ignore[union-attr]  # pycuda's own allocation


class _Event:
    def __init__(self, module: Any) -> None:
        self._module, flags = module, module.event_flags
        with told(module):
            self.native = module.Event(flags.BLOCKING_SYNC | flags.DISABLE_TIMING)

    def synchronize(self) -> None:
        with told(self._module):
            self.native.synchronize()

    def free(self) -> None:
        self.native = None  # destroyed with the object


class _Kernel:
    def __init__(self, native: Any) -> None:
        self.native = native


class _Stream:
    def __init__(self, module: Any) -> None:
        self._module = module
        with told(module):
            self._stream = module.Stream(1)  # CU_STREAM_NON_BLOCKING
        self.handle = int(self._stream.handle)

    def upload(self, pointer: int, host: Bytes) -> None:
        with told(self._module):
            self._module.memcpy_htod_async(pointer, host, self._stream)

    def download(self, host: Bytes, pointer: int) -> None:
        with told(self._module):
            self._module.memcpy_dtoh_async(host, pointer, self._stream)

    def launch(self, kernel: Kernel, grid: Launch, block: Launch, arguments: Sequence[Argument]) -> None:
        with told(self._module):
            kernel.native(*arguments, grid=grid, block=(*block, 1), stream=self._stream)

    def record(self, event: Event) -> None:
        with told(self._module):
            event.native.record(self._stream)

    def wait(self, event: Event) -> None:
        with told(self._module):
            self._stream.wait_for_event(event.native)

    def synchronize(self) -> None:
        with told(self._module):
            self._stream.synchronize()

    def capture(self, work: Callable[[], None]) -> Graph:
        raise BackendError("pycuda has no CUDA graphs; install the bindings with: pip install 'edgeloop[cuda]'")

    def free(self) -> None:
        self._stream = None  # destroyed with the object
