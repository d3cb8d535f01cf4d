"""Telemetry of NVIDIA GPUs through NVML (extra `nvml`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from runtime.telemetry.snapshot import Telemetry

T = TypeVar("T")


def open_nvml() -> NvmlReader | None:
    """A reader of all GPUs that NVML shows; None without nvidia-ml-py, a driver or a GPU."""
    try:
        import pynvml  # optional: the package is of no use without a driver
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None
    return NvmlReader(pynvml, handles) if handles else None


class NvmlReader:
    """Reads every GPU; what a GPU does not support (Jetson: most) is left out."""

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        """Takes the initialised module and its device handles; `open_nvml` makes both."""
        self._nvml, self._handles = nvml, handles

    def read(self) -> Telemetry:
        """Present values.

        Raises:
            NVMLError: the driver or a GPU is lost.
        """
        nvml = self._nvml
        kind = nvml.NVML_TEMPERATURE_GPU
        heat = self._each(lambda gpu: nvml.nvmlDeviceGetTemperature(gpu, kind))
        milliwatts = self._each(nvml.nvmlDeviceGetPowerUsage)
        busy = self._each(lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        used = self._each(lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used)
        slowed = self._each(self._is_slowed)
        return Telemetry(
            temperatures_celsius={f"gpu{index}": float(value) for index, value in heat.items()},
            power_watts={f"gpu{index}": value / 1e3 for index, value in milliwatts.items()},
            gpu_utilization_ratio=max(busy.values()) / 100 if busy else None,
            gpu_memory_used_bytes=sum(used.values()) if used else None,
            throttled=any(slowed.values()) if slowed else None,
        )

    def close(self) -> None:
        """Lets the driver go."""
        self._nvml.nvmlShutdown()

    def _each(self, ask: Callable[[Any], T]) -> dict[int, T]:
        """What the GPUs that support a question answer, by index."""
        answers: dict[int, T] = {}
        for index, gpu in enumerate(self._handles):
            try:
                answers[index] = ask(gpu)
            except (
                self._nvml.NVMLError_NotSupported,
                self._nvml.NVMLError_NoPermission,
                self._nvml.NVMLError_FunctionNotFound,
            ):
                continue
        return answers

    def _is_slowed(self, gpu: Any) -> bool:
        """Heat or the supply holds the clocks down; the board's own power limit does so all the time and does not count."""
        nvml = self._nvml
        slowing = (
            nvml.nvmlClocksThrottleReasonHwSlowdown
            | nvml.nvmlClocksThrottleReasonSwThermalSlowdown
            | nvml.nvmlClocksThrottleReasonHwThermalSlowdown
            | nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown
        )
        return bool(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) & slowing)
