"""Telemetry that Linux itself offers: thermal zones, hwmon, RAPL, cpufreq, meminfo."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.telemetry.snapshot import Telemetry
from runtime.telemetry.sysfs_files import celsius, number, numbered, text, unused
from runtime.telemetry.sysfs_power import PackagePower, hwmon_watts

_FIXED_ZONES = ("PMIC-Die",)  # Tegra: says 100 °C whatever happens
_SLOWING = ("cpufreq", "devfreq", "Processor", "throttle")  # parts of the names of cooling devices that are no fans


class SysfsReader:
    """Reads `/sys` and `/proc`; what is missing or not allowed is left out, nothing raises.

    See the kernel's Documentation/ABI/testing/sysfs-class-thermal, sysfs-class-hwmon and sysfs-class-powercap.
    """

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = time.monotonic) -> None:
        """`root` holds `sys` and `proc`; `clock` counts seconds, to make power from energy."""
        self._sys, self._proc = root / "sys", root / "proc"
        self._package_power = PackagePower(self._sys, clock)
        self._throttle_count: int | None = None

    def read(self) -> Telemetry:
        """Present values."""
        zones = dict(self._zone_temperatures())
        shown = {zone.replace("-", "_") for zone in zones}  # hwmon shows thermal zones once more, under such names
        return Telemetry(
            temperatures_celsius={**dict(self._chip_temperatures(shown)), **zones},
            power_watts={**dict(hwmon_watts(self._sys)), **dict(self._package_power.watts())},
            throttled=self._throttled(),
            cpu_frequency_ratio=self._frequency_ratio(),
            memory_available_bytes=self._memory_available(),
        )

    def close(self) -> None:
        """Nothing is held."""

    def _zone_temperatures(self) -> Iterator[tuple[str, float]]:
        seen: set[str] = set()
        for zone in numbered(self._sys / "class/thermal", "thermal_zone"):
            name, value = text(zone / "type"), celsius(zone / "temp")
            if name and value is not None and name not in _FIXED_ZONES:
                yield unused(name, seen), value

    def _chip_temperatures(self, skipped: set[str]) -> Iterator[tuple[str, float]]:
        seen: set[str] = set()
        for chip in numbered(self._sys / "class/hwmon", "hwmon"):
            name = text(chip / "name") or chip.name
            for path in sorted(chip.glob("temp*_input")) if name not in skipped else ():
                label = text(chip / path.name.replace("_input", "_label"))
                if (value := celsius(path)) is not None:
                    yield unused(f"{name} {label}" if label else name, seen), value

    def _throttled(self) -> bool | None:
        """Whether the kernel slows a processor down to cool it, or a CPU did so by itself since the look before."""
        states = [number(device / "cur_state") for device in self._slowing_devices()]
        counts = [number(path) for path in (self._sys / "devices/system/cpu").glob("cpu*/thermal_throttle/*_throttle_count")]
        count = sum(value for value in counts if value is not None) if any(value is not None for value in counts) else None
        before, self._throttle_count = self._throttle_count, count
        if count is None and all(state is None for state in states):
            return None
        return any(states) or (before is not None and count is not None and count > before)

    def _slowing_devices(self) -> Iterator[Path]:
        for device in numbered(self._sys / "class/thermal", "cooling_device"):
            if any(part in (text(device / "type") or "") for part in _SLOWING):
                yield device

    def _frequency_ratio(self) -> float | None:
        ratios = []
        for policy in numbered(self._sys / "devices/system/cpu/cpufreq", "policy"):
            now, most = number(policy / "scaling_cur_freq"), number(policy / "cpuinfo_max_freq")
            if now is not None and most:
                ratios.append(min(1.0, now / most))
        return sum(ratios) / len(ratios) if ratios else None

    def _memory_available(self) -> int | None:
        for line in (text(self._proc / "meminfo") or "").splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable" and value.strip().removesuffix(" kB").isdigit():
                return int(value.strip().removesuffix(" kB")) * 1024
        return None
