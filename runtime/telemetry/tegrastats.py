"""Telemetry of a Jetson through NVIDIA's `tegrastats`, which runs as a child process and prints a line a look."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Sequence

from runtime.telemetry.snapshot import Telemetry
from runtime.telemetry.sysfs_files import is_temperature
from runtime.threads import LeftThread

_INTERVAL_MS = 5000  # half of the sampler's, so that no line is older than one look
_TEMPERATURE = re.compile(r"(?<!\S)(\w+)@(-?\d+(?:\.\d+)?)C(?!\S)")
_POWER = re.compile(r"(?<!\S)(\w+) (\d+)(?:mW)?/\d+(?:mW)?(?!\S)")  # now/average; RAM and SWAP end in MB
_GPU = re.compile(r"(?<!\S)GR3D_FREQ (\d+)%")
_UNCONNECTED = "NC"
_PMIC_FIXED_CELSIUS = 100.0  # what the power chip of older boards says whatever happens


def open_tegrastats() -> TegrastatsReader | None:
    """A reader where the tool is installed; None elsewhere."""
    tool = shutil.which("tegrastats")
    return TegrastatsReader([tool, "--interval", str(_INTERVAL_MS)]) if tool else None


def parse_line(line: str) -> Telemetry:
    """What one line of tegrastats says; L4T 32 to 36. Memory comes from the kernel, which knows what is free to take."""
    heat = {name: float(value) for name, value in _TEMPERATURE.findall(line)}
    busy = _GPU.search(line)
    return Telemetry(
        temperatures_celsius={
            name: value
            for name, value in heat.items()
            if is_temperature(value) and (name, value) != ("PMIC", _PMIC_FIXED_CELSIUS)
        },
        power_watts={name: int(now) / 1e3 for name, now in _POWER.findall(line) if name != _UNCONNECTED},
        gpu_utilization_ratio=min(1.0, int(busy[1]) / 100) if busy else None,
    )


class TegrastatsReader:
    """Keeps the tool running and its latest line."""

    def __init__(self, command: Sequence[str]) -> None:
        """Starts `command`, which prints lines until it is ended.

        Raises:
            OSError: it cannot be started.
        """
        self._latest = Telemetry()
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace"
        )
        self._thread = LeftThread(target=self._listen, name="tegrastats")
        self._thread.start()

    def read(self) -> Telemetry:
        """What the latest line said; nothing before the first.

        Raises:
            RuntimeError: the tool has ended.
        """
        if self._process.poll() is not None:
            raise RuntimeError(f"tegrastats ended with code {self._process.returncode}")
        return self._latest

    def close(self) -> None:
        """Ends the tool."""
        self._process.terminate()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()

    def _listen(self) -> None:
        lines = self._process.stdout
        if lines is not None:
            with lines, contextlib.suppress(OSError):
                for line in lines:
                    self._latest = parse_line(line)
