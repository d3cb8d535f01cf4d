from __future__ import annotations

from pathlib import Path

import pytest

from runtime.telemetry.sysfs import SysfsReader
from runtime.telemetry.sysfs_files import unused


def tree(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


ZONES = "sys/class/thermal"
CHIPS = "sys/class/hwmon"
RAPL = "sys/class/powercap"
CPUS = "sys/devices/system/cpu"


def test_read__temperatures(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            f"{ZONES}/thermal_zone0/type": "cpu-thermal",
            f"{ZONES}/thermal_zone0/temp": 52468,
            f"{ZONES}/thermal_zone1/type": "gpu-thermal",
            f"{ZONES}/thermal_zone1/temp": -256000,  # the GPU of an idle Orin is off
            f"{ZONES}/thermal_zone2/type": "acpitz",
            f"{ZONES}/thermal_zone2/temp": 40000,
            f"{ZONES}/thermal_zone10/type": "acpitz",
            f"{ZONES}/thermal_zone10/temp": 41000,
            f"{ZONES}/thermal_zone3/type": "PMIC-Die",
            f"{ZONES}/thermal_zone3/temp": 100000,
            f"{ZONES}/thermal_zone4/type": "broken",
            f"{ZONES}/thermal_zone4/temp": "",
            f"{CHIPS}/hwmon0/name": "cpu_thermal",  # the zone once more
            f"{CHIPS}/hwmon0/temp1_input": 52468,
            f"{CHIPS}/hwmon1/name": "coretemp",
            f"{CHIPS}/hwmon1/temp1_input": 61000,
            f"{CHIPS}/hwmon1/temp1_label": "Package id 0",
            f"{CHIPS}/hwmon2/name": "nvme",
            f"{CHIPS}/hwmon2/temp1_input": 38850,
        },
    )
    assert SysfsReader(tmp_path).read().temperatures_celsius == {
        "cpu-thermal": 52.468, "acpitz": 40.0, "acpitz 2": 41.0, "coretemp Package id 0": 61.0, "nvme": 38.85,
    }  # fmt: skip


def test_read__power_of_rails_and_packages(tmp_path: Path) -> None:
    now_s = iter([10.0, 12.0, 14.0, 14.0])
    reader = SysfsReader(tmp_path, lambda: next(now_s))
    tree(
        tmp_path,
        {
            f"{CHIPS}/hwmon0/name": "ina3221",
            f"{CHIPS}/hwmon0/in1_label": "VDD_IN",
            f"{CHIPS}/hwmon0/in1_input": 5000,
            f"{CHIPS}/hwmon0/curr1_input": 1200,
            f"{CHIPS}/hwmon0/curr4_input": 9999,  # the sum channel has neither label nor voltage
            f"{CHIPS}/hwmon1/name": "amdgpu",
            f"{CHIPS}/hwmon1/power1_average": 23_000_000,
            f"{RAPL}/intel-rapl:0/name": "package-0",
            f"{RAPL}/intel-rapl:0/energy_uj": 900_000_000,
            f"{RAPL}/intel-rapl:0/max_energy_range_uj": 1_000_000_000,
            f"{RAPL}/intel-rapl:0:0/name": "core",
            f"{RAPL}/intel-rapl:0:0/energy_uj": 5,
        },
    )
    assert reader.read().power_watts == {"VDD_IN": 6.0, "amdgpu": 23.0}
    tree(tmp_path, {f"{RAPL}/intel-rapl:0/energy_uj": 960_000_000})
    assert reader.read().power_watts["package-0"] == 30.0
    tree(tmp_path, {f"{RAPL}/intel-rapl:0/energy_uj": 20_000_000})  # it went round
    assert reader.read().power_watts["package-0"] == 30.0
    assert "package-0" not in reader.read().power_watts, "no time passed, no power"


def test_read__throttled_by_a_cooling_device(tmp_path: Path) -> None:
    device = f"{ZONES}/cooling_device"
    tree(tmp_path, {f"{device}0/type": "pwm-fan", f"{device}0/cur_state": 3, f"{device}1/type": "cpufreq-cpu0"})
    reader = SysfsReader(tmp_path)
    assert reader.read().throttled is None, "a fan says nothing about clocks"
    for state, throttled in ((0, False), (2, True), (0, False)):
        tree(tmp_path, {f"{device}1/cur_state": state})
        assert reader.read().throttled is throttled


def test_read__throttled_by_the_cpu_itself(tmp_path: Path) -> None:
    reader = SysfsReader(tmp_path)
    found = []
    for count in (7, 7, 9, 9):
        tree(tmp_path, {f"{CPUS}/cpu0/thermal_throttle/core_throttle_count": count})
        found.append(reader.read().throttled)
    assert found == [False, False, True, False]


def test_read__clock_and_memory(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            f"{CPUS}/cpufreq/policy0/scaling_cur_freq": 1_000_000,
            f"{CPUS}/cpufreq/policy0/cpuinfo_max_freq": 2_000_000,
            f"{CPUS}/cpufreq/policy4/scaling_cur_freq": 2_000_000,
            f"{CPUS}/cpufreq/policy4/cpuinfo_max_freq": 2_000_000,
            f"{CPUS}/cpufreq/policy8/scaling_cur_freq": "<unknown>",
            "proc/meminfo": "MemTotal:  100 kB\nMemAvailable:     42 kB\nHugePages_Total: 0",
        },
    )
    found = SysfsReader(tmp_path).read()
    assert (found.cpu_frequency_ratio, found.memory_available_bytes) == (0.75, 42 * 1024)


def test_read__an_empty_machine_knows_nothing(tmp_path: Path) -> None:
    found = SysfsReader(tmp_path).read()
    assert (found.temperatures_celsius, found.power_watts) == ({}, {})
    assert (found.throttled, found.cpu_frequency_ratio, found.memory_available_bytes) == (None, None, None)


def test_read__this_machine() -> None:
    found = SysfsReader().read()
    assert found.memory_available_bytes is not None
    assert found.memory_available_bytes > 1e6
    assert all(0 < watts < 1e5 for watts in found.power_watts.values())


@pytest.mark.parametrize(("seen", "name"), [(set(), "a"), ({"a"}, "a 2"), ({"a", "a 2"}, "a 3")])
def test_unused__numbers_what_is_taken(seen: set[str], name: str) -> None:
    assert unused("a", seen) == name
    assert name in seen
