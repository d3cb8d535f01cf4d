"""What a conversion would do: files, sizes and time, from the export and a few inferences."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converters.errors import ConversionError
from converters.frames import labeled_images
from converters.imported import ImportedModel, load_model
from converters.model_files import ModelFile
from converters.qdq_from_onnx import Family
from converters.request import DEFAULT_FRAMES, ConvertRequest, plan_of
from runtime.backends import open_model, warm
from runtime.pool import Pool

# Shares of the FP32 file's size, as measured on yolo11n and yolov8n at 640.
_SIZE = {"fp32": 1.0, "fp16": 0.5, "int8 cpu": 0.3, "int8 tensorrt": 1.0, "int8 tensorrt-strong": 0.3}
_TIMED = 9  # inferences


@dataclass(frozen=True, slots=True)
class _Cost:
    """What one family of engines takes, in FP32 inferences under ONNX Runtime; its parts were timed on yolo11n at 640.

    Attributes:
        search: per gate frame, while the INT8 file is searched: as it is, and with layers in float.
        final: per gate frame, when all files are measured.
        layers: in all, for the scan of the layers and the timing of those that return.
        fixed_s: seconds that do not depend on the model's speed: graphs that are written, checked and loaded.
    """

    search: float
    final: float
    layers: float
    fixed_s: float


# INT8 takes 1.4 FP32 inferences under ONNX Runtime and 0.45 under OpenVINO; TensorRT's files run under ONNX Runtime, the
# weakly typed at 1.3 and the strongly typed at 2.0, and nothing of theirs is timed.
_COSTS: dict[Family, _Cost] = {
    "cpu": _Cost(search=3.7, final=2.1, layers=760, fixed_s=75),
    "tensorrt": _Cost(search=6.6, final=3.6, layers=1310, fixed_s=25),
}
_FP32, _FP16 = 2.15, 1.1  # per gate frame and measurement: FP32 under two engines, FP16 as a proxy under one
_QUANTISE = 2.1  # per calibration frame: NNCF's statistics and bias correction
_LABELED_S = 0.1  # per labelled gate frame: mAP of every file, and its bootstrap
_REST_S = 4.0  # the comparison with the original, and the report


@dataclass(frozen=True, slots=True)
class Workload:
    """What a conversion's time depends on.

    Attributes:
        export_s: seconds from weights to the FP32 graph.
        inference_s: one FP32 inference under ONNX Runtime.
        pool_frames: all of them are looked at to choose from.
        calibration_frames: how many are chosen.
        gate_frames: how many are measured on.
        labeled: whether those have labels.
        families: of engines that get an INT8 file.
        fp16: whether an FP16 file is made.
        batches: how many batch sizes files are made for.
    """

    export_s: float
    inference_s: float
    pool_frames: int
    calibration_frames: int
    gate_frames: int
    labeled: bool
    families: tuple[Family, ...]
    fp16: bool = False
    batches: int = 1

    @property
    def seconds(self) -> float:
        """An estimate of the whole, if the first INT8 file of each family holds."""
        costs = [_COSTS[family] for family in self.families] if self.gate_frames else []
        measured = _FP32 + (_FP16 if self.fp16 else 0) + sum(cost.final for cost in costs)
        searched = (_FP32 if costs else 0) + sum(cost.search for cost in costs)
        inferences = (
            self.pool_frames
            + (self.gate_frames if self.labeled else 0)
            + self.gate_frames * (measured * self.batches + searched)
            + sum(self.calibration_frames * _QUANTISE + cost.layers for cost in costs)
        )
        fixed_s = self.export_s + _REST_S + sum(cost.fixed_s for cost in costs)
        return fixed_s + inferences * self.inference_s + (self.gate_frames * _LABELED_S if self.labeled else 0)


def estimate(request: ConvertRequest) -> dict[str, Any]:
    """Reads the model and looks at the frames; writes nothing. Raises like `convert` for what it can know."""
    plan = plan_of(request)
    begun = time.monotonic()
    model = load_model(request.checkpoint, request.import_options)
    with tempfile.TemporaryDirectory(prefix="edgeloop-") as folder:
        fp32 = ModelFile.write(Path(folder), "fp32", "any", model.graph)
        export_s, size = time.monotonic() - begun, fp32.path.stat().st_size
        inference_s = _inference_s(fp32, model)
    available = _frames_in(request.pool)
    gate = len(labeled_images(request, model)) if request.data else min(request.gate_frames, available // 4)
    most = max(available - (0 if request.data else gate), 0)
    if request.pool is not None and (request.frames or 0) > most:
        raise ConversionError(
            f"pool {request.pool} has {available} frames, {available - most} of them for the check, but --frames asks for "
            f"{request.frames}; collect more, or use --frames {most}"
        )
    frames = min(request.frames or DEFAULT_FRAMES, most)
    kinds = ["fp32", *(["fp16"] if plan.fp16 else [])]
    kinds += ["int8 cpu"] if "cpu" in plan.int8 else []
    kinds += ["int8 tensorrt", "int8 tensorrt-strong"] if "tensorrt" in plan.int8 else []
    batches = 2 if request.batch > 1 else 1
    labeled = request.data is not None
    work = Workload(export_s, inference_s, available, frames, gate, labeled, plan.int8, plan.fp16, batches)
    width, height = model.preprocess.size_wh
    return {
        "model": f"{model.name} at {width}×{height}, {len(model.names)} classes",
        "calibration": f"{frames} of {available} pool frames by {request.sampler}"
        if plan.int8
        else "none: no pool, or no INT8 asked for",
        "gate": f"{gate} frames{' with labels' if labeled else ''}, at batch 1{f' and {request.batch}' if batches > 1 else ''}",
        "files": [f"{kind}: about {size * _SIZE[kind] / 1e6:.1f} MB" for kind in kinds for _ in range(batches)],
        "time": f"about {work.seconds:.0f} s, an estimate for this machine as busy as it is now; more if layers must return to float",
    }


def _inference_s(fp32: ModelFile, model: ImportedModel) -> float:
    """The fastest of a few: what else the machine does slows some of them, and will not last as long as a conversion."""
    backend = open_model("onnxruntime", fp32.path, "fp32")
    canvas = model.preprocess.buffer()
    warm(backend, canvas)
    times = []
    for _ in range(_TIMED):
        start = time.perf_counter()
        backend.infer(canvas)
        times.append(time.perf_counter() - start)
    backend.close()
    return min(times)


def _frames_in(path: Path | None) -> int:
    if path is None:
        return 0
    with Pool.open(path) as pool:
        return len(pool)
