"""Engines behind one Protocol: one file an engine, same verbs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.backends.inputs import Inputs
from runtime.bundle import Bundle
from runtime.errors import BackendError, MissingPackageError
from runtime.manifest import FORM_OF_ENGINE
from runtime.onnx_file import refuse_external_data
from runtime.postprocess import Outputs
from runtime.preprocess import Preprocess
from runtime.verdict import preferred_here

log = logging.getLogger(__name__)

AUTO = "auto"
# ONNX Runtime's threads spin on after a run, which slowed the next engine by two thirds (17 to 30 ms, yolo11n INT8 under
# OpenVINO on two cores); whoever times engines turn by turn waits that long before each.
SETTLE_S = 0.03


class Backend(Protocol):
    """A loaded model.

    Attributes:
        engine: its name in `ENGINES`.
        precision: `fp32` or `int8`.
        batch: frames that one run takes.
    """

    engine: str
    precision: str

    @property
    def batch(self) -> int:
        """See above."""
        ...

    def inputs(self, preprocess: Preprocess) -> Inputs:
        """A new input buffer; two let one be filled while the other runs."""
        ...

    def run(self, inputs: Inputs) -> Outputs:
        """Runs the batch in a buffer that `inputs` gave. The outputs are as those of `infer`."""
        ...

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
    """Loads a bundle; `auto` takes the engine and precision that were measured as best on this device.

    Raises:
        BackendError, BundleError, MissingPackageError: as above, or the bundle lacks that precision.
    """
    if engine not in (AUTO, *ENGINES):
        raise BackendError(f"unknown engine {engine!r}; the engines are {', '.join(ENGINES)}")
    if AUTO in (engine, precision):
        preferred = preferred_here(bundle, None if engine == AUTO else engine, None if precision == AUTO else precision)
        engine, precision = preferred.engine, preferred.precision
    return open_model(engine, bundle.model_path(precision, FORM_OF_ENGINE[engine]), precision, threads)


def open_installed(bundle: Bundle, threads: int = 0) -> dict[tuple[str, str], Backend]:
    """Every file of a bundle for batch 1 under every engine of this device that it is for, by (precision, engine).

    Engines that are not installed are left out, and those that refuse a file, with a warning: they are no candidates here.
    """
    backends: dict[tuple[str, str], Backend] = {}
    for variant in bundle.manifest.variants:
        for engine in ENGINES:
            if variant.batch > 1 or variant.form not in ("any", FORM_OF_ENGINE[engine]):
                continue
            try:
                backends[variant.precision, engine] = open_model(engine, bundle.path / variant.file, variant.precision, threads)
            except MissingPackageError:
                continue
            except BackendError as error:
                log.warning("left out: %s", error)
    return backends


def warm(backend: Backend, images: NDArray[np.uint8], runs: int = 2) -> None:
    """Runs the model a few times on a blank canvas, so that the first real frame is not the slow one."""
    for _ in range(runs):
        backend.infer(images)
