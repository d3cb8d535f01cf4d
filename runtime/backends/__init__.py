"""Engines behind one Protocol: one file an engine, same verbs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.bundle import Bundle
from runtime.errors import BackendError, MissingPackageError
from runtime.onnx_file import refuse_external_data
from runtime.postprocess import Outputs

log = logging.getLogger(__name__)

AUTO = "auto"


class Backend(Protocol):
    """A loaded model.

    Attributes:
        engine: its name in `ENGINES`.
        precision: `fp32` or `int8`.
    """

    engine: str
    precision: str

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Runs one batch: uint8 (b, h, w, 3) letterboxed BGR, of the shape that the graph was made for.

        The outputs may be overwritten by the next call: copy what is kept.
        """
        ...

    def close(self) -> None:
        """Releases the model."""
        ...


def _onnxruntime(model: Path, precision: str, threads: int) -> Backend:
    from runtime.backends.onnxruntime import OnnxRuntimeBackend  # an extra: the device installs the engines it uses

    return OnnxRuntimeBackend(model, precision, threads)


def _openvino(model: Path, precision: str, threads: int) -> Backend:
    from runtime.backends.openvino import OpenVinoBackend  # an extra, as above

    return OpenVinoBackend(model, precision, threads)


ENGINES: dict[str, Callable[[Path, str, int], Backend]] = {"onnxruntime": _onnxruntime, "openvino": _openvino}


def open_model(engine: str, model: Path, precision: str, threads: int = 0) -> Backend:
    """Loads an ONNX file of ours with a named engine. `threads` 0 means as many as this process may use.

    Raises:
        BackendError: unknown engine, a file with external data, or one that the engine refuses.
        MissingPackageError: the engine's package is not installed.
    """
    if engine not in ENGINES:
        raise BackendError(f"unknown engine {engine!r}; the engines are {', '.join(ENGINES)}")
    refuse_external_data(model)
    return ENGINES[engine](model, precision, threads or len(os.sched_getaffinity(0)))


def open_backend(bundle: Bundle, engine: str = AUTO, precision: str = AUTO, threads: int = 0) -> Backend:
    """Loads a bundle; `auto` takes the engine and precision that the bundle measured as best.

    Raises:
        BackendError, BundleError, MissingPackageError: as above, or the bundle lacks that precision.
    """
    preferred = bundle.manifest.preferred
    chosen = preferred.precision if precision == AUTO else precision
    return open_model(preferred.engine if engine == AUTO else engine, bundle.model_path(chosen), chosen, threads)


def open_installed(models: Mapping[str, Path], threads: int = 0) -> dict[tuple[str, str], Backend]:
    """Every ONNX file (by precision) under every engine of this device, by (precision, engine).

    Engines that are not installed are left out, and those that refuse a file, with a warning: they are no candidates here.
    """
    backends: dict[tuple[str, str], Backend] = {}
    for precision, path in models.items():
        for engine in ENGINES:
            try:
                backends[precision, engine] = open_model(engine, path, precision, threads)
            except MissingPackageError:
                continue
            except BackendError as error:
                log.warning("left out: %s", error)
    return backends


def warm(backend: Backend, images: NDArray[np.uint8], runs: int = 2) -> None:
    """Runs the model a few times on a blank canvas, so that the first real frame is not the slow one."""
    for _ in range(runs):
        backend.infer(images)
