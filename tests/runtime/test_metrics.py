from __future__ import annotations

import mmap

import numpy as np
import pytest

from runtime.metrics import Durations, percentiles, resident_bytes


def test_percentiles__keep_the_tail() -> None:
    found = percentiles([0.001] * 99 + [1.0])
    assert (found.count, found.p50_ms, found.max_ms) == (100, 1.0, 1000.0)
    assert found.mean_ms == pytest.approx(10.99)
    assert percentiles([]).count == 0


def test_durations__bounded_and_recent() -> None:
    durations = Durations()
    for value in range(150_000):
        durations.add(float(value))
    summary = durations.summary()
    assert summary.count == 100_000
    assert summary.p50_ms / 1e3 == pytest.approx(np.median(np.arange(50_000, 150_000)))


def test_resident_bytes__of_this_process() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 50_000_000) as block:  # from the kernel: an allocator may hand out what the process holds already
        block.write(b"\1" * len(block))
        assert resident_bytes() - before > 40_000_000
