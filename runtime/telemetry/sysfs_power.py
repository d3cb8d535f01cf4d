"""Power that Linux shows: rails and boards through hwmon, CPU packages through RAPL's energy counters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.telemetry.sysfs_files import number, numbered, text, unused


def hwmon_watts(sys: Path) -> Iterator[tuple[str, float]]:
    """Watts by name, of sensors that tell power and of rails that tell volts and amperes."""
    seen: set[str] = set()
    for chip in numbered(sys / "class/hwmon", "hwmon"):
        name = text(chip / "name") or chip.name
        for path in sorted([*chip.glob("power*_average"), *chip.glob("power*_input")]):
            label = text(chip / f"{path.name.partition('_')[0]}_label")
            if (microwatts := number(path)) is not None:
                yield unused(f"{name} {label}" if label else name, seen), microwatts / 1e6
        for path in sorted(chip.glob("curr*_input")):  # the INA3221 of Jetson boards: mV and mA
            rail = path.name.removeprefix("curr").partition("_")[0]
            label, amperes, volts = text(chip / f"in{rail}_label"), number(path), number(chip / f"in{rail}_input")
            if label and amperes is not None and volts is not None:
                yield unused(label, seen), amperes * volts / 1e6


class PackagePower:
    """Watts of each CPU package since the look before, from `/sys/class/powercap/intel-rapl:N` (Intel and AMD)."""

    def __init__(self, sys: Path, clock: Callable[[], float]) -> None:
        self._powercap, self._clock = sys / "class/powercap", clock
        self._before: dict[str, tuple[float, int]] = {}  # zone → when in seconds, how much in microjoules

    def watts(self) -> Iterator[tuple[str, float]]:
        """Watts by package; none at the first look, nor without root, who alone may read the energy since 2020."""
        for zone in numbered(self._powercap, "intel-rapl:"):
            name, energy, now_s = text(zone / "name"), number(zone / "energy_uj"), self._clock()
            if not name or energy is None:
                continue
            since_s, before = self._before.get(zone.name, (now_s, energy))
            self._before[zone.name] = (now_s, energy)
            used = energy - before
            if used < 0:  # the counter went round
                used += number(zone / "max_energy_range_uj") or 0
            if now_s > since_s and used >= 0:
                yield name, used / (now_s - since_s) / 1e6
