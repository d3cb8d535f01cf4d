"""Engines behind one Protocol: one file an engine, same verbs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.backends.inputs import Inputs
from runtime.bundle import Bundle
from runtime.cuda.driver import NO_GPU
from runtime.device import GPU_ENGINES, engines_here, usable_cores
from runtime.errors import BackendError, MissingPackageError
from runtime.manifest import FORM_OF_ENGINE, Form
from runtime.onnx_file import refuse_external_data
from runtime.postprocess import Outputs
from runtime.preprocess import Preprocess
from runtime.tensorrt.device import find_device
from runtime.tensorrt.flavour import MODULES, load_flavour
from runtime.verdict import measured_here, preferred_here

log = logging.getLogger(__name__)

AUTO = "auto"
_WORTH = 0.95  # a batch that saves less than that of a frame's time is not worth the wait for its frames
# ONNX Runtime's threads spin on after a run, which slowed the next engine by two thirds (17 to 30 ms, yolo11n INT8 under
# OpenVINO on two cores); whoever times engines turn by turn waits that long before each.
SETTLE_S = 0.03


class Backend(Protocol):
    """A loaded model.

    Attributes:
        engine: its name in `ENGINES`.
        precision: `fp32`, `fp16` or `int8`.
        batch: images in one inference, which the graph was made for.
        streams: how many threads may run it at once.
    """

    engine: str
    precision: str
    batch: int
    streams: int

    def inputs(self, preprocess: Preprocess) -> Inputs:
        """A new buffer for one batch. With one more than there are streams, one is filled while the others run.

        Raises:
            BackendError: the model takes another size than `preprocess` makes, or there is no memory.
        """
        ...

    def run(self, inputs: Inputs) -> Outputs:
        """Runs the batch in a buffer that `inputs` made.

        The outputs may be overwritten by the next run on the same stream and thread, and are not to be read after `close`: copy what is kept.

        Raises:
            BackendError: the engine refuses.
            DeviceLostError: the GPU failed; only a new process can use it again.
        """
        ...

    def infer(self, images: NDArray[np.uint8]) -> Outputs:
        """Runs one batch: uint8 (b, h, w, 3) letterboxed BGR, of the shape that the graph was made for. Else as `run`."""
        ...

    def close(self) -> None:
        """Releases the model."""
        ...


def _onnxruntime(model: Path, precision: str, threads: int, streams: int) -> Backend:
    from runtime.backends.onnxruntime import OnnxRuntimeBackend  # an extra: the device installs the engines it uses

    return OnnxRuntimeBackend(model, precision, threads, streams)


def _openvino(model: Path, precision: str, threads: int, streams: int) -> Backend:
    from runtime.backends.openvino import OpenVinoBackend  # an extra, as above

    return OpenVinoBackend(model, precision, threads, streams)


def _onnxruntime_cuda(model: Path, precision: str, *_: int) -> Backend:
    from runtime.backends.onnxruntime_cuda import open_onnxruntime_cuda  # an extra, as above

    return open_onnxruntime_cuda(model, precision)


def _tensorrt(model: Path, precision: str, *_: int) -> Backend:
    from runtime.backends.tensorrt import open_tensorrt  # an extra, as above

    return open_tensorrt("tensorrt", model, precision)


def _tensorrt_rtx(model: Path, precision: str, *_: int) -> Backend:
    from runtime.backends.tensorrt import open_tensorrt  # an extra, as above

    return open_tensorrt("tensorrt-rtx", model, precision)


# By name: given the file, its precision, and the threads and streams of an engine that runs on the CPU.
ENGINES: dict[str, Callable[[Path, str, int, int], Backend]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "onnxruntime-cuda": _onnxruntime_cuda,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}


def open_model(engine: str, model: Path, precision: str, threads: int = 0, streams: int = 1) -> Backend:
    """Loads an ONNX file of ours with a named engine.

    Args:
        engine: one of `ENGINES`.
        model: the file.
        precision: what it is told to be.
        threads: of an engine on the CPU, in all; 0 means as many as this process may use.
        streams: frames that such an engine runs at once, at most one a thread; a GPU has one.

    Raises:
        BackendError: unknown engine, a file with external data, or one that the engine refuses.
        MissingPackageError: the engine's package is not installed.
    """
    if engine not in ENGINES:
        raise BackendError(f"unknown engine {engine!r}; the engines are {', '.join(ENGINES)}")
    refuse_external_data(model)
    threads = threads or usable_cores()
    return ENGINES[engine](model, precision, threads, min(streams, threads))


def open_backend(
    bundle: Bundle,
    engine: str = AUTO,
    precision: str = AUTO,
    threads: int = 0,
    unmeasured: str | None = None,
    streams: int = 1,
) -> Backend:
    """Loads a bundle; `auto` takes the engine and precision that were measured as best on this device.

    Where nobody has measured, the engines are timed now, or `unmeasured` is taken: beside a running engine times say nothing.

    Raises:
        BackendError, BundleError, MissingPackageError: as above, or the bundle lacks that precision.
    """
    if engine not in (AUTO, *ENGINES):
        raise BackendError(f"unknown engine {engine!r}; the engines are {', '.join(ENGINES)}")
    if engine in GPU_ENGINES and find_device() is None:  # before a package is asked for that would not help
        raise BackendError(f"{engine} cannot run {bundle.path}: {NO_GPU}")
    if AUTO in (engine, precision):
        preferred = preferred_here(bundle, None if engine == AUTO else engine, None if precision == AUTO else precision)
        measured = any((row.engine, row.precision) == (preferred.engine, preferred.precision) for row in measured_here(bundle))
        if engine == AUTO and not measured:
            from runtime.speed import fastest_engine  # it times the engines of this module

            engine = unmeasured or fastest_engine(bundle, preferred.precision, threads)
        else:
            engine = preferred.engine
        precision = preferred.precision
    return open_model(engine, model_file(bundle, engine, precision), precision, threads, streams)


def open_larger(
    bundle: Bundle, backend: Backend, batch: int | Literal["auto"], cameras: int, threads: int = 0
) -> tuple[Backend | None, int]:
    """The same model as `backend` with a file for several frames at once, or None, and from how many frames it pays.

    `auto` takes the file with which so many cameras were measured here to be served soonest, if that beats one by one, which
    no batch does where streams run beside each other; a number is taken as it is, measured or not.

    Raises:
        BackendError, BundleError, MissingPackageError: as `open_backend`; the bundle has no file for that batch.
    """
    form, alone_ms = form_here(backend.engine), _batch_ms(bundle, backend, 1)
    rows = (row for row in bundle.manifest.variants if row.precision == backend.precision and row.form in ("any", form))
    sizes = {row.batch for row in rows if row.batch > 1}
    if isinstance(batch, int):
        size = batch
    elif backend.streams > 1:
        size = 1
    else:  # of cameras that all have a frame: how long a round of them takes
        round_ms = {size: -(-cameras // size) * _batch_ms(bundle, backend, size) for size in sizes}
        best = min(round_ms, key=lambda size: round_ms[size], default=1)
        size = best if best > 1 and round_ms[best] < _WORTH * cameras * alone_ms else 1
    if size == 1:
        return None, 1
    path = bundle.model_path(backend.precision, form, size)
    larger = open_model(backend.engine, path, backend.precision, threads, backend.streams)
    ratio = _batch_ms(bundle, backend, size) / alone_ms
    return larger, max(2, math.ceil(ratio)) if math.isfinite(ratio) else 2


def _batch_ms(bundle: Bundle, backend: Backend, batch: int) -> float:
    """Milliseconds of a batch of that size, as measured on this device; infinite where nobody did."""
    rows = measured_here(bundle)
    same = (row for row in rows if (row.engine, row.precision, row.batch) == (backend.engine, backend.precision, batch))
    return min((row.latency_p50_ms for row in same if not row.refused), default=float("inf"))


def model_file(bundle: Bundle, engine: str, precision: str) -> Path:
    """The file of a bundle, for batch 1, that an engine of this device runs in a precision.

    Raises:
        BundleError: there is none.
        BackendError, MissingPackageError: TensorRT, whose version decides, does not load or is not installed.
    """
    form = form_here(engine)
    if (form, precision) == ("tensorrt", "fp16"):  # weak typing: the builder makes it of float32
        precision = "fp32"
    return bundle.model_path(precision, form)


def form_here(engine: str) -> Form:
    """Which of a bundle's files an engine takes in the version that is installed. Raises as `model_file`."""
    if engine not in MODULES:
        return FORM_OF_ENGINE[engine]
    return load_flavour(engine).form


def open_installed(bundle: Bundle, threads: int = 0) -> dict[tuple[str, str], Backend]:
    """Every file of a bundle for batch 1 under every engine of this device that it is for, by (precision, engine).

    Engines that are not installed are left out, as are those for a GPU where there is none, and with a warning those that
    refuse a file: they are no candidates here.
    """
    backends: dict[tuple[str, str], Backend] = {}
    for variant in bundle.manifest.variants:
        for engine in engines_here():
            if variant.batch > 1:
                continue
            try:
                if variant.form in ("any", form_here(engine)):
                    path = bundle.path / variant.file
                    backends[variant.precision, engine] = open_model(engine, path, variant.precision, threads)
            except MissingPackageError:
                continue
            except BackendError as error:
                log.warning("left out: %s", error)
    return backends


def warm(backend: Backend, images: NDArray[np.uint8], runs: int = 2) -> None:
    """Runs the model a few times on a blank canvas, so that the first real frame is not the slow one."""
    for _ in range(runs):
        backend.infer(images)
