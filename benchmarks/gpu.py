"""The GPU engines on a machine with an NVIDIA GPU: letterbox against OpenCV, outputs against the CPU, rates, stages.

    python -m benchmarks.gpu model.fp32.onnx [model.fp32.b8.onnx …]

It takes files of a bundle rather than a bundle, since a bare GPU machine cannot make one. An engine that cannot be opened
is written down with its reason. Frames are noise of 1080p, sent from as many threads as the batch has rows.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import SEED, write_result
from runtime.backends import Backend, open_model, warm
from runtime.backends.device_inputs import Uploader
from runtime.backends.inputs import Inputs
from runtime.cuda.driver import Cuda
from runtime.device import GPU_ENGINES
from runtime.errors import EdgeloopError
from runtime.postprocess import Thresholds, detections_from_outputs
from runtime.preprocess import Letterbox, Preprocess
from runtime.tensorrt.device import find_device

RUNS = 300
SIZES_WH = ((1920, 1080), (1280, 720), (3840, 2160), (333, 500))
CAMERA_WH = (1920, 1080)
THRESHOLDS = Thresholds(0.001)  # noise shows nothing; with this the whole postprocess runs
RNG = np.random.default_rng(SEED)


def noise(size_wh: tuple[int, int]) -> NDArray[np.uint8]:
    """A frame, uint8 (h, w, 3)."""
    return RNG.integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)


def median_ms(work: Callable[[], object], runs: int = RUNS) -> float:
    """Median time of `work`."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1e3, 4)


def letterbox_figures(preprocess: Preprocess) -> dict[str, Any]:
    """Grey levels between the kernel and OpenCV, and what a frame costs on either."""
    uploader, found = Uploader(), {}
    inputs = uploader.inputs((1, preprocess.size_wh[1], preprocess.size_wh[0], 3), preprocess)
    expected = preprocess.buffer()[0]

    def fetched(cuda: Cuda) -> NDArray[np.uint8]:
        host = cuda.host_buffer(expected.nbytes)
        uploader.stream.download(host.array, inputs.pointer)
        uploader.stream.synchronize()
        row = np.array(host.array.reshape(expected.shape), np.uint8)
        host.free()
        return row

    def arrived() -> None:
        inputs.put(0, frame)
        uploader.owner.call(lambda _: uploader.stream.synchronize())

    for size_wh in SIZES_WH:
        frame = noise(size_wh)
        preprocess.letterbox(frame, expected)
        inputs.put(0, frame)
        levels = np.abs(uploader.owner.call(fetched).astype(np.int16) - expected)
        found[f"{size_wh[0]}x{size_wh[1]}"] = {
            "levels_apart_most": int(levels.max()),
            "bytes_apart": round(float((levels > 0).mean()), 6),
            "put_until_arrived_ms": median_ms(arrived),
            "opencv_ms": median_ms(lambda: preprocess.letterbox(frame, expected)),  # noqa: B023  # called at once
        }
    uploader.close()
    return found


def against_cpu(backend: Backend, model: Path, size: int) -> dict[str, float]:
    """The furthest that outputs are from ONNX Runtime's on the CPU."""
    images = RNG.integers(0, 256, (backend.batch, size, size, 3), dtype=np.uint8)
    cpu = open_model("onnxruntime", model, "fp32")
    found, expected = backend.infer(images), cpu.infer(images)
    figures = {
        "scores": float(np.abs(found.scores - expected.scores).max()),
        "embedding": float(np.abs(found.embedding - expected.embedding).max()),
    }
    cpu.close()
    return figures


def rates(backend: Backend, preprocess: Preprocess) -> dict[str, Any]:
    """Batches per second of the engine alone, and of frames → detections with two buffers."""
    frames = [noise(CAMERA_WH) for _ in range(backend.batch)]
    running, filling = backend.inputs(preprocess), backend.inputs(preprocess)
    rows = list(range(backend.batch))
    with ThreadPoolExecutor(backend.batch) as cameras:

        def fill(inputs: Inputs) -> list[Letterbox]:
            return list(cameras.map(lambda row: inputs.put(row, frames[row]), rows))

        letterboxes = fill(running)
        fill(filling)
        for inputs in (running, filling) * 3:
            backend.run(inputs)
        bare_before = 1e3 / median_ms(lambda: backend.run(running))
        with ThreadPoolExecutor(1) as scheduler:
            start = time.perf_counter()
            for _ in range(RUNS):
                filled = scheduler.submit(fill, filling)
                outputs = backend.run(running)
                for row in rows:
                    detections_from_outputs(outputs, row, letterboxes[row], THRESHOLDS)
                letterboxes = filled.result()
                running, filling = filling, running
            whole = RUNS / (time.perf_counter() - start)
        bare = (bare_before + 1e3 / median_ms(lambda: backend.run(running))) / 2
        outputs = backend.run(running)
        return {
            "bare_batches_per_s": round(bare, 1),
            "whole_batches_per_s": round(whole, 1),
            "ratio": round(whole / bare, 3),
            "put_ms": median_ms(lambda: filling.put(0, frames[0])),
            "put_batch_ms": median_ms(lambda: fill(filling)),
            "run_ms": median_ms(lambda: backend.run(running)),
            "postprocess_ms": median_ms(lambda: detections_from_outputs(outputs, 0, letterboxes[0], THRESHOLDS)),
        }


def measured(engine: str, model: Path, size: int) -> dict[str, Any]:
    """All of one engine and file, or why there is nothing."""
    try:
        start = time.perf_counter()
        backend = open_model(engine, model, "fp32")
    except EdgeloopError as error:
        return {"not_measured": str(error)}
    try:
        opened_s = round(time.perf_counter() - start, 2)
        warm(backend, np.zeros((backend.batch, size, size, 3), np.uint8), 3)
        figures = {"batch": backend.batch, "open_s": opened_s, "from_cpu": against_cpu(backend, model, size)}
        return {**figures, **rates(backend, Preprocess((size, size)))}
    except EdgeloopError as error:
        return {"not_measured": str(error)}
    finally:
        backend.close()


def main() -> None:
    size = 640
    device = find_device()
    figures: dict[str, Any] = {"gpu": asdict(device) if device else None, "frame_wh": CAMERA_WH, "runs": RUNS}
    try:
        figures["letterbox"] = letterbox_figures(Preprocess((size, size)))
    except EdgeloopError as error:
        figures["letterbox"] = {"not_measured": str(error)}
    figures["engines"] = {
        f"{engine}, {Path(name).name}": measured(engine, Path(name), size) for name in sys.argv[1:] for engine in GPU_ENGINES
    }
    write_result("gpu", figures)


if __name__ == "__main__":
    main()
