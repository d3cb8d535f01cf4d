"""The real compiler; it needs no GPU and no driver. CI gets it with the extra `cuda` (or `train`, whose torch brings it)."""

from __future__ import annotations

import pytest

from runtime.cuda.letterbox import SOURCE
from runtime.cuda.nvrtc import cubin_from_source
from runtime.errors import BackendError, MissingPackageError


@pytest.fixture(scope="module", autouse=True)
def _compiler() -> None:
    try:
        cubin_from_source("", "SM80")
    except MissingPackageError as error:
        pytest.skip(str(error))


# Xavier is older than NVRTC 13 knows; Orin Nano to AGX, RTX 20 to 50, A100, H100, B200.
@pytest.mark.parametrize("compute_capability", ["SM75", "SM80", "SM86", "SM87", "SM89", "SM90", "SM100", "SM120"])
def test_cubin__letterbox_for_every_gpu(compute_capability: str) -> None:
    cubin = cubin_from_source(SOURCE, compute_capability)
    assert cubin[:4] == b"\x7fELF"
    for kernel in (b"letterbox_bgr\0", b"letterbox_nv12\0"):
        assert kernel in cubin


@pytest.mark.parametrize(
    ("source", "compute_capability", "says"),
    [
        (SOURCE, "SM13", r"NVRTC \d+\.\d+ cannot compile for SM13: .*gpu-architecture"),
        ("no program", "SM80", 'identifier "no" is undefined'),
    ],
)
def test_cubin__refused_in_a_sentence(source: str, compute_capability: str, says: str) -> None:
    with pytest.raises(BackendError, match=says):
        cubin_from_source(source, compute_capability)


def test_cubin__a_driver_older_than_every_compiler_here() -> None:
    with pytest.raises(MissingPackageError, match="NVRTC of CUDA 10 or older is not installed"):
        cubin_from_source(SOURCE, "SM80", cuda_major=10)
