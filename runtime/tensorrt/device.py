"""The GPU at hand, as far as a plan depends on it.

Asked of the CUDA driver through ctypes: it is on every device that can run an engine, Jetson included, where NVML is not,
and needs no package. Nothing is allocated and no context is made.
"""

from __future__ import annotations

import ctypes
import logging
from dataclasses import dataclass

log = logging.getLogger(__name__)

_LIBRARY = "libcuda.so.1"
# CUdevice_attribute of cuda.h
_SM_COUNT, _CC_MAJOR, _CC_MINOR = 16, 75, 76


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan is tied to.

    Attributes:
        name: such as `Orin` or `NVIDIA H100 80GB HBM3`.
        compute_capability: such as `SM87`.
        sm_count: streaming multiprocessors; power modes and MIG change it.
        cuda_major: the newest CUDA that the driver speaks.
    """

    name: str
    compute_capability: str
    sm_count: int
    cuda_major: int


def find_device(library: str = _LIBRARY, ordinal: int = 0) -> Device | None:
    """The GPU that TensorRT builds for by itself, or None without GPU or driver. Heeds CUDA_VISIBLE_DEVICES."""
    try:
        cuda = ctypes.CDLL(library)
        _check(cuda.cuInit(0), "cuInit")
        return _device(cuda, ordinal)
    except OSError as error:
        log.debug("no NVIDIA GPU: %s", error)
        return None


def _device(cuda: ctypes.CDLL, ordinal: int) -> Device:
    handle, version = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    _check(cuda.cuDeviceGet(ctypes.byref(handle), ordinal), "cuDeviceGet")
    _check(cuda.cuDeviceGetName(name, len(name), handle), "cuDeviceGetName")
    _check(cuda.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    major, minor, sm_count = (_attribute(cuda, which, handle) for which in (_CC_MAJOR, _CC_MINOR, _SM_COUNT))
    return Device(name.value.decode(errors="replace"), f"SM{major}{minor}", sm_count, version.value // 1000)


def _attribute(cuda: ctypes.CDLL, which: int, handle: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _check(cuda.cuDeviceGetAttribute(ctypes.byref(value), which, handle), "cuDeviceGetAttribute")
    return value.value


def _check(result: int, call: str) -> None:
    if result != 0:
        raise OSError(f"{call} gives {result}")
