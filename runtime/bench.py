"""Latency of a bundle on this device: every engine and precision, interleaved, nothing trimmed."""

from __future__ import annotations

import time

import numpy as np

from runtime.backends import ENGINES, SETTLE_S, open_installed, warm
from runtime.bundle import Bundle
from runtime.errors import BackendError
from runtime.metrics import Percentiles, percentiles


def bench(bundle: Bundle, runs: int, threads: int = 0) -> dict[tuple[str, str], Percentiles]:
    """Times `runs` inferences of each (precision, engine), one of each in turn, so that a noisy machine is noisy for all.

    Engines that are not installed or refuse a file are left out.

    Raises:
        BackendError: no engine is left.
    """
    backends = open_installed(bundle, threads)
    if not backends:
        raise BackendError(
            f"no engine of {', '.join(ENGINES)} can run {bundle.path}; install one with: pip install 'edgeloop[cpu]'"
        )
    canvas = bundle.preprocess.buffer(bundle.manifest.outputs.batch)
    canvas[:] = np.random.default_rng(0).integers(0, 256, canvas.shape, dtype=np.uint8)
    for backend in backends.values():
        warm(backend, canvas, runs=3)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in backends}
    for _ in range(runs):
        for key, backend in backends.items():
            time.sleep(SETTLE_S)
            start = time.perf_counter()
            backend.infer(canvas)
            times[key].append(time.perf_counter() - start)
    for backend in backends.values():
        backend.close()
    return {key: percentiles(values) for key, values in times.items()}
