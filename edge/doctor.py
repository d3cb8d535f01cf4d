"""What this machine has for edgeloop, what is missing, and how to get it."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from runtime.device import CPU_FLAGS, Device, package_version, proc_field, usable_cores

# distribution, extra, what for; cuda and tensorrt come with the device on Jetson
_PACKAGES = (
    ("numpy", "", "arrays"),
    ("opencv-python", "", "cameras and pictures"),
    ("onnxruntime", "cpu", "CPU engine"),
    ("openvino", "cpu", "CPU engine, usually the faster one for INT8"),
    ("tensorrt", "tensorrt", "NVIDIA engine"),
    ("tensorrt-rtx", "tensorrt-rtx", "NVIDIA engine for RTX"),
    ("onnxruntime-gpu", "gpu", "NVIDIA engine, without a plan to build"),
    ("cuda-bindings", "cuda", "frames and buffers on the GPU"),
    ("onnx", "convert", "conversion"),
    ("nncf", "convert", "INT8"),
    ("torch", "train", "training and export"),
    ("ultralytics", "train", "YOLO architectures (AGPL-3.0)"),
    ("lightly", "train", "self-supervised losses"),
    ("faster-coco-eval", "convert", "mAP"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        what: the thing.
        state: `ok`, `missing` or `info`.
        detail: version, value or remedy.
    """

    what: str
    state: str
    detail: str


def examine() -> list[Finding]:
    """Looks at CPU, memory, GPU, cameras and packages; imports none of them."""
    return [*_machine(), *_gpu(), *(_package(*row) for row in _PACKAGES), *_cameras()]


def machine_facts() -> dict[str, str]:
    """What every measured figure is told with: processor, cores, memory, and the versions that matter."""
    findings = {finding.what: finding.detail for finding in _machine()}
    versions = {name: found for name, *_ in _PACKAGES if (found := package_version(name))}
    return {**findings, **versions}


def _machine() -> list[Finding]:
    device = Device.current()
    found = [CPU_FLAGS[flag] for flag in device.isa]
    int8 = any(flag in device.isa for flag in ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp"))
    memory_kb = int((proc_field("/proc/meminfo", ("MemTotal",)) or "0 kB").split()[0])
    return [
        Finding(
            "python",
            "info",
            f"{platform.python_version()} on {platform.machine()}, {platform.system()} {platform.release()}",
        ),
        Finding("edgeloop", "info", package_version("edgeloop") or "not installed, run from a source folder"),
        Finding(
            "cpu",
            "info",
            f"{device.cpu}, {usable_cores()} cores usable",
        ),
        Finding("cpu features", "info", ", ".join(found) or "none known"),
        Finding(
            "int8 on cpu",
            "info",
            "native dot products" if int8 else "no VNNI: INT8 files must be measured per engine, edge-convert does",
        ),
        Finding("memory", "info", f"{memory_kb / 1e6:.1f} GB"),
    ]


def _gpu() -> list[Finding]:
    if Path("/etc/nv_tegra_release").is_file():
        release = Path("/etc/nv_tegra_release").read_text(encoding="ascii", errors="replace").splitlines()[0]
        return [Finding("gpu", "ok", f"Jetson, {release.strip('# ')}")]
    if Path("/proc/driver/nvidia/version").is_file():
        driver = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace").splitlines()[0]
        return [Finding("gpu", "ok", driver)]
    return [Finding("gpu", "info", "no NVIDIA driver: CPU engines only")]


def _package(name: str, extra: str, purpose: str) -> Finding:
    found = package_version(name)
    if found:
        return Finding(name, "ok", f"{found} ({purpose})")
    remedy = f"pip install 'edgeloop[{extra}]'" if extra else "pip install edgeloop"
    return Finding(name, "missing", f"{purpose}; get it with: {remedy}")


def _cameras() -> list[Finding]:
    devices = sorted(str(path) for path in Path("/dev").glob("video*"))
    found = [Finding("v4l2 cameras", "info", ", ".join(devices) or "none")]
    if shutil.which("systemctl") is None:
        found.append(Finding("systemd", "missing", "run `edge run` under another supervisor; deploy/ has a Dockerfile"))
    return found
