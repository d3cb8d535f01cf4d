"""What the daemon and the benchmarks count: no outlier is ever trimmed."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LATEST = 100_000  # values kept for percentiles: a few hours of one camera, under a megabyte


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A latency distribution in milliseconds; `count` is how many values it rests on."""

    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float

    def as_dict(self) -> dict[str, float]:
        """For JSON, rounded to a microsecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def percentiles(values_s: Sequence[float] | NDArray[np.floating[Any]]) -> Percentiles:
    """The distribution of durations given in seconds; all zeros for none. No outlier is removed."""
    if not len(values_s):
        return Percentiles(0, 0.0, 0.0, 0.0, 0.0, 0.0)
    values_ms = np.asarray(values_s, np.float64) * 1e3
    p50, p90, p99 = np.percentile(values_ms, [50, 90, 99])
    return Percentiles(len(values_ms), float(values_ms.mean()), float(p50), float(p90), float(p99), float(values_ms.max()))


class Durations:
    """The latest durations of one stage, in seconds, in bounded memory."""

    def __init__(self) -> None:
        self._values = np.full(_LATEST, np.nan, np.float32)  # all of it now: memory shall not grow for hours
        self._count = 0

    def add(self, value_s: float) -> None:
        """Remembers one value; the oldest goes once there are `_LATEST`."""
        self._values[self._count % _LATEST] = value_s
        self._count += 1

    def summary(self) -> Percentiles:
        """Their distribution."""
        return percentiles(self._values[: self._count])


def resident_bytes() -> int:
    """Memory that this process holds in RAM now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """The most memory that this process ever held in RAM (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def process_began_s() -> float:
    """Unix time at which the kernel started this process (field 22 of /proc/self/stat, in ticks since boot)."""
    ticks = float(Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19])
    uptime_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    return time.time() - uptime_s + ticks / os.sysconf("SC_CLK_TCK")
