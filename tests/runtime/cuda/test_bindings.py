"""What cuda-bindings itself says of our calls without a driver: it converts the arguments first, then misses the library."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.cuda.bindings import BindingsCuda
from runtime.tensorrt.device import find_device

driver = pytest.importorskip("cuda.bindings.driver", reason="pip install 'edgeloop[cuda]'")
_GIVES = {
    "cuDeviceGet": "CUdevice", "cuDevicePrimaryCtxRetain": "CUcontext", "cuModuleLoadData": "CUmodule",
    "cuModuleGetFunction": "CUfunction", "cuMemAlloc": "CUdeviceptr", "cuEventCreate": "CUevent", "cuStreamCreate": "CUstream",
    "cuStreamEndCapture": "CUgraph", "cuGraphInstantiate": "CUgraphExec",
}  # fmt: skip


class Accepting:
    """The real module, whose calls are tried and found to miss nothing but the driver."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self._memory = np.zeros(64, np.uint8)

    def __getattr__(self, name: str) -> Any:
        real = getattr(driver, name)
        return self._tried(name, real) if name.startswith("cu") else real

    def _tried(self, name: str, real: Any) -> Any:
        def call(*arguments: object) -> tuple[object, ...]:
            if name != "cuInit":  # it must not look like a machine without a driver
                with pytest.raises(RuntimeError, match="NVIDIA driver library"):
                    real(*arguments)
            self.called.append(name)
            given = self._memory.ctypes.data if name == "cuMemHostAlloc" else getattr(driver, _GIVES.get(name, "int"), int)()
            return driver.CUresult.CUDA_SUCCESS, given

        return call


@pytest.mark.skipif(find_device() is not None, reason="there is an NVIDIA GPU here: the calls would be done")
def test_bindings__every_call_has_the_arguments_that_the_module_takes() -> None:
    module = Accepting()
    cuda = BindingsCuda(module)
    stream, event, buffer, host = cuda.stream(), cuda.event(), cuda.buffer(64), cuda.host_buffer(64)
    stream.upload(buffer.pointer, host.array[:32])
    stream.launch(cuda.kernel(b"cubin", "name"), (2, 3), (32, 8), [np.uint64(1), np.int32(-2)])
    stream.download(host.array, buffer.pointer)
    stream.record(event)
    stream.wait(event)
    stream.synchronize()
    event.synchronize()
    graph = stream.capture(lambda: None)
    graph.launch()
    with pytest.raises(ZeroDivisionError):
        stream.capture(lambda: print(1 // 0))
    for made in (graph, buffer, host, event, stream):
        made.free()
    cuda.close()
    assert module.called.count("cuStreamBeginCapture") == module.called.count("cuStreamEndCapture") == 2
    assert module.called.count("cuGraphDestroy") == 2
    assert len(set(module.called)) == 29
