from __future__ import annotations

import time
from pathlib import Path

import pytest

from runtime.telemetry.nvml import open_nvml
from runtime.telemetry.sampler import Readers, TelemetrySampler, open_readers
from runtime.telemetry.snapshot import Telemetry, merged
from runtime.telemetry.sysfs import SysfsReader


class Broken:
    def __init__(self) -> None:
        self.reads = 0
        self.closed = 0

    def read(self) -> Telemetry:
        self.reads += 1
        raise OSError("driver lost")

    def close(self) -> None:
        self.closed += 1
        raise OSError("driver lost")


def test_merged__the_earlier_word_counts() -> None:
    first = Telemetry({"cpu": 50.0}, {}, gpu_utilization_ratio=0.0, throttled=False)
    second = Telemetry({"cpu": 60.0, "nvme": 40.0}, {"VDD_IN": 5.0}, gpu_utilization_ratio=0.9, throttled=True)
    assert merged([first, second]) == Telemetry({"cpu": 50.0, "nvme": 40.0}, {"VDD_IN": 5.0}, 0.0, throttled=True)
    assert merged([]) == Telemetry()


def test_readers__one_that_fails_is_told_once_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 2 kB\n")
    broken = Broken()
    readers = Readers([broken, SysfsReader(tmp_path)])
    assert [readers.read().memory_available_bytes for _ in range(3)] == [2048, 2048, 2048]
    assert (broken.reads, broken.closed) == (1, 1)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "telemetry: Broken failed (OSError('driver lost')) and is left out from now on"
    ]
    readers.close()
    assert broken.closed == 1


def test_open_readers__always_knows_the_kernel() -> None:
    readers = Readers(open_readers())
    assert readers.read().memory_available_bytes
    readers.close()


def test_sampler__keeps_the_latest_and_ends() -> None:
    sampler = TelemetrySampler(interval_s=0.01)
    assert sampler.latest == Telemetry()
    sampler.start()
    for _ in range(500):
        if sampler.latest != Telemetry():
            break
        time.sleep(0.01)
    sampler.stop()
    assert sampler.latest.memory_available_bytes
    last = sampler.latest
    time.sleep(0.05)
    assert sampler.latest is last, "a stopped sampler looks no more"


def test_sampler__stop_before_start() -> None:
    sampler = TelemetrySampler()
    sampler.stop()
    assert sampler.latest == Telemetry()


def test_open_nvml__no_driver_is_no_error() -> None:
    if Path("/proc/driver/nvidia/version").exists():
        pytest.skip("this machine has an NVIDIA driver")
    assert open_nvml() is None


@pytest.mark.gpu
def test_open_nvml__reads_a_real_gpu() -> None:
    reader = open_nvml()
    if reader is None:
        pytest.skip("no NVIDIA GPU that NVML shows")
    found = reader.read()
    reader.close()
    assert 0 < found.temperatures_celsius["gpu0"] < 120
    assert found.gpu_utilization_ratio is not None
    assert 0 <= found.gpu_utilization_ratio <= 1
    assert found.throttled is not None
