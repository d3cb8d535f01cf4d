"""The kernels' arithmetic, compiled as C; that the GPU's compiler takes the same text is in test_nvrtc."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime.cuda.letterbox import SOURCE, job_for
from runtime.errors import BackendError
from runtime.preprocess import Preprocess

Image = NDArray[np.uint8]
_NUMBERS = 9  # the ints of a job
_GRID = """
typedef struct { int x, y; } Two;
static Two threadIdx, blockIdx, blockDim = {1, 1};
#include "kernels.h"
#define GRID for (blockIdx.y = 0; blockIdx.y < blocks_y * 8; blockIdx.y++) \\
    for (blockIdx.x = 0; blockIdx.x < blocks_x * 32; blockIdx.x++)
void run_bgr(int blocks_x, int blocks_y, const byte *source, byte *canvas, int step, const int *n)
{ GRID letterbox_bgr(source, canvas, step, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8]); }
void run_nv12(int blocks_x, int blocks_y, const byte *luma, const byte *chroma, byte *canvas, int step, const int *n)
{ GRID letterbox_nv12(luma, chroma, canvas, step, step, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8]); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here; CI needs one: apt-get install gcc libc6-dev")
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.h").write_text(SOURCE)
    (folder / "grid.c").write_text(_GRID)
    command = [compiler, "-O2", "-Wall", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    subprocess.run(
        [*command, "-shared", "-fPIC", "-o", str(folder / "kernels.so"), str(folder / "grid.c")], check=True, timeout=120
    )
    return ctypes.CDLL(str(folder / "kernels.so"))


def run(function: Callable[..., object], planes: tuple[Image, ...], preprocess: Preprocess, size_wh: tuple[int, int]) -> Image:
    job = job_for(preprocess, size_wh)
    assert len(job.numbers) == _NUMBERS
    width, height = preprocess.size_wh
    around = np.full(height * width * 3 + 64, 7, np.uint8)  # what is written beyond the row would show
    canvas = around[32:-32].reshape(height, width, 3)
    pointers = [ctypes.c_void_p(plane.ctypes.data) for plane in (*planes, canvas)]
    function(*job.grid, *pointers, planes[0].strides[0], (ctypes.c_int * _NUMBERS)(*(int(number) for number in job.numbers)))
    assert (around[:32] == 7).all()
    assert (around[-32:] == 7).all()
    return np.array(canvas, np.uint8)


def expected(image: Image, preprocess: Preprocess) -> Image:
    canvases = preprocess.buffer()
    preprocess.letterbox(image, canvases[0])
    return np.array(canvases[0], np.uint8)


def levels_apart(a: Image, b: Image) -> int:
    return int(np.abs(a.astype(np.int16) - b).max())


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 500),
    st.integers(1, 500),
    st.sampled_from([(64, 64), (320, 192), (96, 160), (100, 44)]),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
)
def test_bgr__within_a_grey_level_of_opencv(
    library: ctypes.CDLL, width: int, height: int, size_wh: tuple[int, int], pad: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    preprocess = Preprocess(size_wh, pad, stride=4)  # 100 × 44 is no whole number of blocks
    found = run(library.run_bgr, (image,), preprocess, (width, height))
    assert levels_apart(found, expected(image, preprocess)) <= 1


@pytest.mark.parametrize("source_wh", [(1920, 1080), (1280, 1280), (640, 640), (640, 480), (3840, 2160), (1, 2000)])
def test_bgr__camera_sizes(library: ctypes.CDLL, source_wh: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (source_wh[1], source_wh[0], 3), dtype=np.uint8)
    preprocess = Preprocess((640, 640))
    found, wanted = run(library.run_bgr, (image,), preprocess, source_wh), expected(image, preprocess)
    assert levels_apart(found, wanted) <= 1
    assert (found != wanted).mean() < 1e-3


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 250), st.integers(1, 250), st.sampled_from([(64, 64), (320, 192)]), st.integers(0, 2**32 - 1))
def test_nv12__within_a_grey_level_of_opencv(
    library: ctypes.CDLL, half_w: int, half_h: int, size_wh: tuple[int, int], seed: int
) -> None:
    width, height = 2 * half_w, 2 * half_h
    planes = np.random.default_rng(seed).integers(0, 256, (height + half_h, width), dtype=np.uint8)
    preprocess = Preprocess(size_wh)
    found = run(library.run_nv12, (planes[:height], planes[height:]), preprocess, (width, height))
    bgr = np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12), np.uint8)
    assert levels_apart(found, expected(bgr, preprocess)) <= 1


@pytest.mark.parametrize("source_wh", [(32767, 1), (1, 32767)])
def test_bgr__largest_source_does_not_overflow(library: ctypes.CDLL, source_wh: tuple[int, int]) -> None:
    """The C compiler's sanitizer ends the process on an int that overflows."""
    image = np.random.default_rng(1).integers(0, 256, (source_wh[1], source_wh[0], 3), dtype=np.uint8)
    preprocess = Preprocess((8192, 32) if source_wh[0] > 1 else (32, 8192))
    assert levels_apart(run(library.run_bgr, (image,), preprocess, source_wh), expected(image, preprocess)) <= 1


def test_job_for__more_than_the_kernel_can_count() -> None:
    with pytest.raises(BackendError, match="32768×10 for 64×64 is more than 32767"):
        job_for(Preprocess((64, 64)), (32768, 10))
