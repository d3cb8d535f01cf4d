"""Cubin from CUDA C: NVRTC on the device itself, without nvcc and without a driver.

Called through ctypes, since pycuda has no NVRTC and its C interface is the same in CUDA 11 to 13. The library comes with
JetPack, with a CUDA toolkit, or with the wheel that the extra `cuda` brings.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

from runtime.cuda.failures import failure
from runtime.errors import BackendError, MissingPackageError

_NEWEST, _OLDEST = 13, 11  # majors of CUDA that are looked for
_TOOLKIT = Path("/usr/local/cuda/lib64")
_TOLD_LINES = 3  # of the compiler's log; the rest follows from them


def cubin_from_source(source: str, compute_capability: str, cuda_major: int = _NEWEST) -> bytes:
    """Machine code for one kind of GPU.

    Args:
        source: CUDA C; names that are looked up later are `extern "C"`.
        compute_capability: such as `SM87`.
        cuda_major: the newest CUDA that the driver speaks; it refuses code of a newer compiler.

    Raises:
        MissingPackageError: there is no NVRTC that such a driver takes.
        BackendError: the compiler does not know that GPU, or refuses the source.
    """
    nvrtc = _library(cuda_major)
    program = ctypes.c_void_p()
    _check(nvrtc, "nvrtcCreateProgram", ctypes.byref(program), source.encode(), b"edgeloop.cu", 0, None, None)
    try:
        option = f"--gpu-architecture={compute_capability.lower().replace('sm', 'sm_')}".encode()
        if nvrtc.nvrtcCompileProgram(program, 1, (ctypes.c_char_p * 1)(option)) != 0:
            log = " ".join(
                _output(nvrtc, "ProgramLog", program).decode(errors="replace").strip("\0 \n").splitlines()[:_TOLD_LINES]
            )
            said = log or "it does not say why"
            raise BackendError(
                f"NVRTC {_version(nvrtc)} cannot compile for {compute_capability}: {said}; install the NVRTC of a CUDA that knows it"
            )
        return _output(nvrtc, "CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _output(nvrtc: ctypes.CDLL, what: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(nvrtc, f"nvrtcGet{what}Size", program, ctypes.byref(size))
    data = ctypes.create_string_buffer(size.value)
    _check(nvrtc, f"nvrtcGet{what}", program, data)
    return data.raw


def _check(nvrtc: ctypes.CDLL, call: str, *arguments: object) -> None:
    if code := getattr(nvrtc, call)(*arguments):
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise failure(call, nvrtc.nvrtcGetErrorString(code).decode())


def _version(nvrtc: ctypes.CDLL) -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(nvrtc, "nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def _library(cuda_major: int) -> ctypes.CDLL:
    for path in _places(min(cuda_major, _NEWEST)):
        try:
            return ctypes.CDLL(path)
        except OSError:  # not there, or for another processor
            continue
    raise MissingPackageError(f"NVRTC of CUDA {cuda_major} or older", "cuda")


def _places(newest: int) -> Iterator[str]:
    """Where the library may be, newest first: the loader's path, wheels beside this interpreter, a toolkit."""
    for major in range(newest, _OLDEST - 1, -1):
        name = f"libnvrtc.so.{major}" if major >= 12 else "libnvrtc.so.11.2"  # the name that all of CUDA 11.2 to 11.8 have
        yield name
        for folder in (Path(entry) / "nvidia" for entry in sys.path):
            yield from (str(path) for path in sorted(folder.glob(f"*/lib/{name}")))
        yield str(_TOOLKIT / name)
