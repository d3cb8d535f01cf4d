"""What the device feels at one instant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Telemetry:
    """One look at the device; what no reader knows is None, or absent from the mappings.

    Attributes:
        temperatures_celsius: sensor → °C.
        power_watts: rail or package → watts, averaged since the look before where the hardware counts energy.
        gpu_utilization_ratio: 0 to 1, of the busiest GPU.
        gpu_memory_used_bytes: of all GPUs together; None where the GPU shares the system's memory.
        throttled: heat or the supply slows a processor down now.
        cpu_frequency_ratio: 0 to 1, present over highest clock, mean over the clusters.
        memory_available_bytes: what programs can still take without swapping.
    """

    temperatures_celsius: Mapping[str, float] = field(default_factory=dict)
    power_watts: Mapping[str, float] = field(default_factory=dict)
    gpu_utilization_ratio: float | None = None
    gpu_memory_used_bytes: int | None = None
    throttled: bool | None = None
    cpu_frequency_ratio: float | None = None
    memory_available_bytes: int | None = None


class Reader(Protocol):
    """One source of telemetry."""

    def read(self) -> Telemetry:
        """What it knows now.

        Raises:
            Exception: of any kind; the reader is then not asked again.
        """
        ...

    def close(self) -> None:
        """Releases what it holds."""
        ...


def merged(found: Iterable[Telemetry]) -> Telemetry:
    """One snapshot of several; where two know the same thing, the earlier counts. Throttled if any says so."""
    looks = list(found)
    throttled = [look.throttled for look in looks if look.throttled is not None]
    return Telemetry(
        temperatures_celsius={name: value for look in reversed(looks) for name, value in look.temperatures_celsius.items()},
        power_watts={name: value for look in reversed(looks) for name, value in look.power_watts.items()},
        gpu_utilization_ratio=_first(look.gpu_utilization_ratio for look in looks),
        gpu_memory_used_bytes=_first(look.gpu_memory_used_bytes for look in looks),
        throttled=any(throttled) if throttled else None,
        cpu_frequency_ratio=_first(look.cpu_frequency_ratio for look in looks),
        memory_available_bytes=_first(look.memory_available_bytes for look in looks),
    )


def _first(values: Iterable[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)
