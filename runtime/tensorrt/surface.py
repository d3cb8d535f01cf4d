"""What the kit uses of the `tensorrt` and `tensorrt_rtx` modules, checked by mypy against stubs of TensorRT 10.13.

What a generation lacks is probed with `hasattr` where it is used; what only RTX has is in `RtxBuilderConfig`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # typings/tensorrt: the module itself is an extra
    import tensorrt


class TensorRT(Protocol):
    """Either module."""

    __name__: str
    __version__: str
    Builder: type[tensorrt.Builder]
    BuilderFlag: type[tensorrt.BuilderFlag]
    ILogger: type[tensorrt.ILogger]
    IProgressMonitor: type[tensorrt.IProgressMonitor]  # from 9 on
    MemoryPoolType: type[tensorrt.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[tensorrt.NetworkDefinitionCreationFlag]
    OnnxParser: type[tensorrt.OnnxParser]
    ProfilingVerbosity: type[tensorrt.ProfilingVerbosity]
    Runtime: type[tensorrt.Runtime]

    def __hash__(self) -> int: ...


class RtxBuilderConfig(Protocol):
    """What `IBuilderConfig` has more under TensorRT-RTX, which builds for GPUs that are not there."""

    num_compute_capabilities: int

    def set_compute_capability(self, compute_capability: object, index: int) -> bool:
        """Sets one of the targets."""
        ...


if TYPE_CHECKING:
    _: TensorRT = tensorrt  # a name that the stubs do not have fails here
