"""What INT8 measurements depend on: the CPU's instructions and the engines' versions.

The same quantised file can be right and fast on one CPU and ruined on another, so a verdict counts only on devices with
the same known instruction sets and the same version of the engine. Clock and number of cores may differ: they move FP32
and INT8 alike.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from runtime.tensorrt.device import find_device

# Flags of /proc/cpuinfo that decide which INT8 kernels run.
CPU_FLAGS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "VNNI (256)",
    "avx512_vnni": "VNNI (512)",
    "amx_int8": "AMX",
    "asimddp": "dot product",
    "i8mm": "I8MM",
}
# Which distributions bring an engine; the module is the same.
ENGINE_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "onnxruntime-cuda": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}
GPU_ENGINES = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


class Device(BaseModel):
    """Where something was measured.

    Attributes:
        cpu: model name; told, not compared.
        machine: `x86_64`, `aarch64`, …
        isa: the known instruction sets that it has, sorted.
        engines: engines that can run there and their versions.
        gpu: name and compute capability of the GPU, where an engine for one can run; empty elsewhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: str
    machine: str
    isa: tuple[str, ...]
    engines: dict[str, str]
    gpu: str = ""

    @classmethod
    def current(cls) -> Device:
        """This device."""
        found = engines_here()
        device = find_device() if any(name in GPU_ENGINES for name in found) else None
        gpu = f"{device.name}, {device.compute_capability}" if device else ""
        flags = set(proc_field("/proc/cpuinfo", ("flags", "Features")).split())
        name = proc_field("/proc/cpuinfo", ("model name", "Model")) or "unknown"
        return cls(cpu=name, machine=platform.machine(), isa=tuple(sorted(flags & set(CPU_FLAGS))), engines=found, gpu=gpu)

    def serves(self, engine: str, other: Device) -> bool:
        """Whether what was measured with `engine` on `other` holds here: same instructions, same version of the engine.

        For an engine that runs on the GPU that is the same kind of GPU.
        """
        on_cpu = (self.machine, self.isa) == (other.machine, other.isa)
        same = self.gpu == other.gpu != "" if engine in GPU_ENGINES else on_cpu
        return same and self.engines.get(engine) == other.engines.get(engine) is not None


def engines_here() -> dict[str, str]:
    """The engines that can run on this device, and their versions: installed, and those for a GPU only where there is one."""
    found = {name: installed for name in ENGINE_DISTRIBUTIONS if (installed := engine_version(name))}
    if any(name in GPU_ENGINES for name in found) and find_device() is None:
        return {name: installed for name, installed in found.items() if name not in GPU_ENGINES}
    return found


def engine_version(engine: str) -> str | None:
    """The installed version of an engine, or None."""
    return next((found for name in ENGINE_DISTRIBUTIONS[engine] if (found := package_version(name))), None)


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def proc_field(path: str, names: tuple[str, ...]) -> str:
    """The value of the first `name: value` line of a /proc file; empty when there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux, or no /proc in this sandbox
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
