"""Latency of a bundle on this device: every engine and precision, interleaved, nothing trimmed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from runtime.backends import ENGINES, Backend, open_backend, warm
from runtime.bundle import Bundle
from runtime.errors import BackendError, MissingPackageError
from runtime.metrics import Percentiles, percentiles


def bench(bundle: Bundle, runs: int, threads: int = 0, seed: int = 0) -> dict[tuple[str, str], Percentiles]:
    """Times `runs` inferences of each (precision, engine), one of each in turn, so that a noisy machine is noisy for all.

    Engines that are not installed or refuse a file are left out.

    Raises:
        BackendError: no engine is left.
    """
    backends = _open_all(bundle, [variant.precision for variant in bundle.manifest.variants], threads)
    canvas = bundle.preprocess.buffer(bundle.manifest.outputs.batch)
    canvas[:] = np.random.default_rng(seed).integers(0, 256, canvas.shape, dtype=np.uint8)
    for backend in backends.values():
        warm(backend, canvas, runs=3)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in backends}
    for _ in range(runs):
        for key, backend in backends.items():
            start = time.perf_counter()
            backend.infer(canvas)
            times[key].append(time.perf_counter() - start)
    for backend in backends.values():
        backend.close()
    return {key: percentiles(values) for key, values in times.items()}


def _open_all(bundle: Bundle, precisions: Sequence[str], threads: int) -> dict[tuple[str, str], Backend]:
    backends: dict[tuple[str, str], Backend] = {}
    for precision in precisions:
        for engine in ENGINES:
            try:
                backends[precision, engine] = open_backend(bundle, engine, precision, threads)
            except (MissingPackageError, BackendError):
                continue  # this device does not have that engine, or it cannot run that file
    if not backends:
        raise BackendError(
            f"no engine of {', '.join(ENGINES)} can run {bundle.path}; install one with: pip install 'edgeloop[cpu]'"
        )
    return backends
