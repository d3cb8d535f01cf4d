from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.telemetry.snapshot import Telemetry
from runtime.telemetry.tegrastats import TegrastatsReader, open_tegrastats, parse_line

# Lines that devices printed, from public reports.
TX2_L4T32 = (  # github.com/rbonghi/jetson_stats/issues/187, JetPack 4.6
    "RAM 1689/3825MB (lfb 339x4MB) SWAP 0/1913MB (cached 0MB) CPU [3%@345,off,off,0%@345,1%@345,1%@345] EMC_FREQ 0% "
    "GR3D_FREQ 0% PLL@50.5C MCPU@50.5C PMIC@50C GPU@50C BCPU@50.5C thermal@50.3C"
)
XAVIER_NX_L4T32 = (  # a public k3s-on-Jetson guide; six cores, rails without units
    "RAM 4071/7770MB (lfb 171x4MB) SWAP 0/3885MB (cached 0MB) CPU [9%@1420,7%@1420,9%@1420,7%@1420,12%@1420,6%@1420] "
    "EMC_FREQ 0% GR3D_FREQ 0% AO@61.5C GPU@62C PMIC@100C AUX@62C CPU@64C thermal@62.25C VDD_IN 5608/5483 "
    "VDD_CPU_GPU_CV 1160/1089 VDD_SOC 2640/2643"
)
ORIN_NX_L4T35 = (  # captured on L4T 35.4.1 (JetPack 5), without root: no rails
    "09-22-2026 00:29:21 RAM 4461/15524MB (lfb 196x4MB) SWAP 34/7762MB (cached 0MB) CPU [0%@1984,0%@1984,0%@1984,1%@1984,"
    "0%@1984,0%@1984,0%@1984,0%@1984] EMC_FREQ 0% GR3D_FREQ 0%@[0] CV0@51.093C CPU@52.75C SOC2@51.281C SOC0@52.125C "
    "CV1@51.187C GPU@50.656C tj@52.843C SOC1@52.781C CV2@50C"
)
ORIN_NANO_L4T36 = (  # tests of github.com/henrygd/beszel, from its issue 286 (kernel 5.15.148-tegra, L4T 36)
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729,11%@729,14%@729,13%@729,"
    "11%@729,8%@729] EMC_FREQ 43%@2133 GR3D_FREQ 63%@[621] NVDEC off NVJPG off NVJPG1 off VIC off OFA off APE 200 "
    "cpu@53.968C soc2@52.437C soc0@50.75C gpu@53.343C tj@53.968C soc1@51.656C VDD_IN 12479mW/12479mW "
    "VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
AGX_ORIN_L4T35 = (  # github.com/GDWR/jetson_exporter/issues/14: sensors that are off, a rail that is not connected
    "04-11-2025 10:36:27 RAM 4321/62801MB (lfb 1759x4MB) SWAP 19/31400MB (cached 0MB) CPU [0%@729,0%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[0,0] VIC_FREQ 729 APE 174 CV0@-256C CPU@44.562C Tboard@32C SOC2@40.093C Tdiode@33C "
    "SOC0@41.093C CV1@-256C GPU@-256C tj@44.343C SOC1@41.25C CV2@-256C VDD_GPU_SOC 2340mW/2340mW VDD_CPU_CV 390mW/390mW "
    "VIN_SYS_5V0 4025mW/4025mW NC 0mW/0mW VDDQ_VDD2_1V8AO 301mW/301mW NC 0mW/0mW"
)


@pytest.mark.parametrize(
    ("line", "busy", "power_watts", "heat"),
    [
        (TX2_L4T32, 0.0, {}, {"PLL": 50.5, "MCPU": 50.5, "PMIC": 50, "GPU": 50, "BCPU": 50.5, "thermal": 50.3}),
        (
            XAVIER_NX_L4T32, 0.0, {"VDD_IN": 5.608, "VDD_CPU_GPU_CV": 1.16, "VDD_SOC": 2.64},
            {"AO": 61.5, "GPU": 62, "AUX": 62, "CPU": 64, "thermal": 62.25},
        ),
        (
            ORIN_NX_L4T35, 0.0, {},
            {"CV0": 51.093, "CPU": 52.75, "SOC2": 51.281, "SOC0": 52.125, "CV1": 51.187, "GPU": 50.656, "tj": 52.843, "SOC1": 52.781, "CV2": 50},
        ),
        (
            ORIN_NANO_L4T36, 0.63, {"VDD_IN": 12.479, "VDD_CPU_GPU_CV": 4.667, "VDD_SOC": 2.817},
            {"cpu": 53.968, "soc2": 52.437, "soc0": 50.75, "gpu": 53.343, "tj": 53.968, "soc1": 51.656},
        ),
        (
            AGX_ORIN_L4T35, 0.0, {"VDD_GPU_SOC": 2.34, "VDD_CPU_CV": 0.39, "VIN_SYS_5V0": 4.025, "VDDQ_VDD2_1V8AO": 0.301},
            {"CPU": 44.562, "Tboard": 32, "SOC2": 40.093, "Tdiode": 33, "SOC0": 41.093, "tj": 44.343, "SOC1": 41.25},
        ),
    ],
)  # fmt: skip
def test_parse_line__real_lines(line: str, busy: float, power_watts: dict[str, float], heat: dict[str, float]) -> None:
    assert parse_line(line) == Telemetry(heat, power_watts, busy)


@given(st.text())
def test_parse_line__takes_anything(line: str) -> None:
    assert parse_line(line).throttled is None


def wait_for_look(reader: TegrastatsReader) -> Telemetry:
    for _ in range(500):
        if (found := reader.read()) != Telemetry():
            return found
        time.sleep(0.01)
    raise AssertionError("no line came")


def test_reader__keeps_the_latest_line_and_ends_its_child() -> None:
    program = f"import time; print({TX2_L4T32!r}); print({ORIN_NANO_L4T36!r}, flush=True); time.sleep(600)"
    reader = TegrastatsReader([sys.executable, "-c", program])
    wait_for_look(reader)
    for _ in range(500):
        if reader.read() == parse_line(ORIN_NANO_L4T36):
            break
        time.sleep(0.01)
    assert reader.read() == parse_line(ORIN_NANO_L4T36)
    reader.close()
    with pytest.raises(RuntimeError, match="ended with code -15"):
        reader.read()


def test_reader__a_tool_that_ended_is_told() -> None:
    reader = TegrastatsReader([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="ended with code 3"):
        wait_for_look(reader)
    reader.close()


def test_open_tegrastats__only_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert open_tegrastats() is None
