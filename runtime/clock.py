"""Tells when somebody sets the system's clock: wall time against a clock that never jumps."""

from __future__ import annotations

import time

JUMP_S = 2.0  # NTP slews smaller differences


class ClockWatch:
    """Compares the two clocks now and then."""

    def __init__(self, wall_s: float | None = None, monotonic_s: float | None = None) -> None:
        """Starts from these readings, by default from now."""
        self._offset_s = self._offset(wall_s, monotonic_s)

    def jump_s(self, wall_s: float | None = None, monotonic_s: float | None = None) -> float:
        """Seconds by which the wall clock was set since the last look that told a jump; 0 for less than `JUMP_S`."""
        jump_s = self._offset(wall_s, monotonic_s) - self._offset_s
        if abs(jump_s) < JUMP_S:
            return 0.0
        self._offset_s += jump_s
        return jump_s

    @staticmethod
    def _offset(wall_s: float | None, monotonic_s: float | None) -> float:
        return (time.time() if wall_s is None else wall_s) - (time.monotonic() if monotonic_s is None else monotonic_s)
