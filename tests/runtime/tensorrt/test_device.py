from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.tensorrt.device import Device, find_device

# A driver library with one GPU, as far as the kit asks it; numbers of cuda.h.
DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return RESULT; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal == 0 ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, device == 7 ? "Orin" : "?", size); return 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? 8 : which == 76 ? 7 : which == 16 ? 14 : -1;
    return 0;
}
"""


@pytest.mark.parametrize(("result", "expected"), [(0, Device("Orin", "SM87", 14, 12)), (100, None)])
def test_find_device__asks_the_driver(tmp_path: Path, result: int, expected: Device | None) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    source, library = tmp_path / "driver.c", tmp_path / "libcuda.so"
    source.write_text(DRIVER.replace("RESULT", str(result)))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True, timeout=60)
    assert find_device(str(library)) == expected


def test_find_device__no_driver() -> None:
    assert find_device("libcuda-that-is-nowhere.so") is None


@pytest.mark.gpu
def test_find_device__the_gpu_here() -> None:
    device = find_device()
    if device is None:
        pytest.skip("no NVIDIA GPU here")
    assert device.compute_capability.startswith("SM")
    assert device.sm_count > 0
