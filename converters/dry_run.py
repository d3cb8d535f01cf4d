"""What a conversion would do: files, sizes and time, from the export and three inferences."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from converters.imported import load_model
from converters.model_files import ModelFile
from converters.request import DEFAULT_FRAMES, ConvertRequest, plan_of
from runtime.backends import open_model, warm
from runtime.pool import Pool

# Shares of the FP32 file's size, and times in FP32 inferences, as measured on yolo11n and yolov8n at 640.
_SIZE = {"fp32": 1.0, "fp16": 0.5, "int8 cpu": 0.3, "int8 tensorrt": 1.0, "int8 tensorrt-strong": 0.3}
_QUANTISE, _FIXED_S = 3.0, 12.0
_GATE = 5.0  # FP32 twice, and INT8 on an engine that is slow with it


def estimate(request: ConvertRequest) -> dict[str, Any]:
    """Reads the model and looks at the pool; writes nothing. Raises like `convert` for what it can know."""
    plan = plan_of(request)
    begun = time.monotonic()
    model = load_model(request.checkpoint, request.import_options)
    with tempfile.TemporaryDirectory(prefix="edgeloop-") as folder:
        fp32 = ModelFile.write(Path(folder), "fp32", "any", model.graph)
        exported_s, size = time.monotonic() - begun, fp32.path.stat().st_size
        backend = open_model("onnxruntime", fp32.path, "fp32")
        canvas = model.preprocess.buffer()
        warm(backend, canvas)
        start = time.monotonic()
        warm(backend, canvas, runs=3)
        inference_s = (time.monotonic() - start) / 3
        backend.close()
    available = _frames_in(request.pool)
    gate = min(request.gate_frames, available // 4) if request.data is None else request.gate_frames
    frames = min(request.frames or DEFAULT_FRAMES, max(available - (0 if request.data else gate), 0))
    kinds = ["fp32", *(["fp16"] if plan.fp16 else [])]
    kinds += ["int8 cpu"] if "cpu" in plan.int8 else []
    kinds += ["int8 tensorrt", "int8 tensorrt-strong"] if "tensorrt" in plan.int8 else []
    seconds = (
        exported_s + inference_s * (frames + gate * _GATE) + len(plan.int8) * (_FIXED_S + frames * _QUANTISE * inference_s)
    )
    width, height = model.preprocess.size_wh
    return {
        "model": f"{model.name} at {width}×{height}, {len(model.names)} classes",
        "calibration": f"{frames} of {available} pool frames by {request.sampler}"
        if plan.int8
        else "none: no pool, or no INT8 asked for",
        "gate": f"{gate} frames{' with labels' if request.data else ''}, at batch 1{f' and {request.batch}' if request.batch > 1 else ''}",
        "files": [
            f"{kind}: about {size * _SIZE[kind] / 1e6:.1f} MB" for kind in kinds for _ in range(2 if request.batch > 1 else 1)
        ],
        "time": f"about {max(seconds, 1):.0f} s here, more if layers must return to float",
    }


def _frames_in(path: Path | None) -> int:
    if path is None:
        return 0
    with Pool.open(path) as pool:
        return len(pool)
