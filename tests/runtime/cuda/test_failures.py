from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from runtime.cuda.bindings import Driver
from runtime.cuda.failures import POISON, failure, lost_device
from runtime.cuda.pycuda import told
from runtime.errors import BackendError, DeviceLostError

CODES = pytest.importorskip("cuda.bindings.driver", reason="pip install 'edgeloop[cuda]'").CUresult


def test_poison__holds_every_code_that_nvidia_says_ends_the_process() -> None:
    documented = {code.name for code in CODES if "terminated and relaunched" in " ".join((code.__doc__ or "").split())}
    assert len(documented) > 5
    assert documented <= set(POISON)
    assert set(POISON) <= {code.name for code in CODES}


@pytest.mark.parametrize(
    ("name", "text", "kind", "says"),
    [
        ("CUDA_ERROR_ILLEGAL_ADDRESS", "", DeviceLostError, "restart the process"),
        ("", "an illegal memory access was encountered", DeviceLostError, "restart the process"),
        ("CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered", DeviceLostError, "restart"),
        ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory", BackendError, "take a smaller batch"),
        ("", "out of memory", BackendError, "take a smaller batch"),
        ("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "", BackendError, "nvidia-smi"),
        ("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch", BackendError, "nvidia-smi"),
    ],
)
def test_failure__kind_and_remedy(name: str, text: str, kind: type[BackendError], says: str) -> None:
    error = failure("cuCall", name, text)
    assert type(error) is kind
    assert re.search(f"cuCall gives .*{says}", str(error))


@pytest.mark.parametrize(
    ("line", "lost"),
    [
        ("Error Code 1: Cuda Runtime (an illegal memory access was encountered)", True),
        ("CUDA failure 719: unspecified launch failure ; GPU=0 ; hostname=edge", True),
        ("Error Code 2: OutOfMemory (Requested size was 8 bytes.)", False),
    ],
)
def test_lost_device__from_what_an_engine_says(line: str, lost: bool) -> None:
    assert (lost_device(["something before", line]) is not None) is lost


def test_driver__checks_every_code() -> None:
    codes = iter(
        [(CODES.CUDA_SUCCESS, 7), (CODES.CUDA_SUCCESS,), (CODES.CUDA_ERROR_LAUNCH_FAILED,), (CODES.CUDA_ERROR_OUT_OF_MEMORY,)]
    )
    module = SimpleNamespace(cuCall=lambda *_: next(codes), cuGetErrorString=lambda code: (CODES.CUDA_SUCCESS, b"said so"))
    call = Driver(module)
    assert call("cuCall", 1) == 7
    assert call("cuCall") is None
    with pytest.raises(DeviceLostError, match=r"cuCall gives CUDA_ERROR_LAUNCH_FAILED \(said so\)"):
        call("cuCall")
    with pytest.raises(BackendError, match="no memory left"):
        call("cuCall")


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("cuMemAlloc failed: out of memory", BackendError),
        ("cuEventSynchronize failed: unspecified launch failure", DeviceLostError),
    ],
)
def test_told__pycuda_errors_are_ours(message: str, kind: type[BackendError]) -> None:
    class Error(Exception):
        """As `pycuda.driver.Error`, the base of all that it raises."""

    with pytest.raises(kind, match=message.partition(" ")[0]), told(SimpleNamespace(Error=Error)):
        raise Error(message)
