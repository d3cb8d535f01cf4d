"""CUDA's return codes as errors of ours, and which of them end the context."""

from __future__ import annotations

from collections.abc import Iterable

from runtime.errors import BackendError, DeviceLostError

# CUresult by name → what cuGetErrorString says, which is all that pycuda, TensorRT and ONNX Runtime pass on.
# cuda.h on these: "leaves the process in an inconsistent state and any further CUDA work will return the same error. To
# continue using CUDA, the process must be terminated and relaunched", or the like; ECC, NVLink and a lost context besides.
POISON = {
    "CUDA_ERROR_ILLEGAL_ADDRESS": "an illegal memory access was encountered",
    "CUDA_ERROR_LAUNCH_FAILED": "unspecified launch failure",
    "CUDA_ERROR_LAUNCH_TIMEOUT": "the launch timed out and was terminated",
    "CUDA_ERROR_ILLEGAL_INSTRUCTION": "an illegal instruction was encountered",
    "CUDA_ERROR_MISALIGNED_ADDRESS": "misaligned address",
    "CUDA_ERROR_INVALID_ADDRESS_SPACE": "operation not supported on global/shared address space",
    "CUDA_ERROR_INVALID_PC": "invalid program counter",
    "CUDA_ERROR_HARDWARE_STACK_ERROR": "hardware stack error",
    "CUDA_ERROR_ASSERT": "device-side assert triggered",
    "CUDA_ERROR_ECC_UNCORRECTABLE": "uncorrectable ECC error encountered",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE": "uncorrectable NVLink error detected during the execution",
    "CUDA_ERROR_CONTAINED": "Invalid access of peer GPU memory over nvlink or a hardware error",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": "context is destroyed",
    "CUDA_ERROR_DEINITIALIZED": "driver shutting down",
    "CUDA_ERROR_EXTERNAL_DEVICE": "an async error has occured in external entity outside of CUDA",
    "CUDA_ERROR_TENSOR_MEMORY_LEAK": "tensor memory not completely freed",
    "CUDA_ERROR_MPS_CLIENT_TERMINATED": "MPS client terminated without reason",
    "CUDA_ERROR_UNKNOWN": "unknown error",
}
_MEMORY = ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory")


def failure(call: str, name: str, text: str = "") -> BackendError:
    """The error for a call that did not return CUDA_SUCCESS.

    Args:
        call: such as `cuMemAlloc`.
        name: such as `CUDA_ERROR_OUT_OF_MEMORY`; empty where only the text is known.
        text: what CUDA says of it.
    """
    said = f"{call} gives {name or text}" + (f" ({text})" if name and text else "")
    if name in POISON or _is_poison(text):
        return _lost(said)
    if name == _MEMORY[0] or _MEMORY[1] in text:
        return BackendError(f"the GPU has no memory left: {said}; take a smaller batch, or end what else runs on it")
    return BackendError(f"CUDA refuses: {said}; look at the driver with nvidia-smi")


def lost_device(told: Iterable[str]) -> DeviceLostError | None:
    """The error, where an engine's own messages `told` say that the context is gone."""
    line = next((line for line in told if _is_poison(line)), None)
    return None if line is None else _lost(f"the engine says: {line}")


def _lost(said: str) -> DeviceLostError:
    return DeviceLostError(f"the GPU failed and this process can no longer use it: {said}; restart the process")


def _is_poison(text: str) -> bool:
    return any(words in text for words in POISON.values()) or any(name in text for name in POISON)
