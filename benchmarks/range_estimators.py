"""Is another choice of activation ranges better than NNCF's? TensorRT's symmetric form of yolo11n and yolov8n.

NNCF's mean of the batches' extremes against: the smallest squared error over a histogram (what NVIDIA recommends for
YOLOv7), two percentiles and the plain maximum, from the same 64 frames, with NNCF's placement and bias correction kept.
Judged under ONNX Runtime on coco_val2017.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import yaml
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.common import DATA, WORK, coco_pool, write_result
from calibration.batches import PoolBatches
from calibration.gate_frames import LabeledGateFrames
from calibration.labels import read_labels
from calibration.sampler import time_spread
from converters.gate import Candidate, Gate, judge, run_candidates
from converters.imported import ImportOptions, load_model
from converters.qdq_from_onnx import qdq_from_onnx
from runtime.images import list_images
from runtime.pool import Pool
from runtime.postprocess import Thresholds

BINS = 2048
FRAMES = 64
Histogram = tuple[NDArray[np.float64], float]  # counts of |x|, and the largest |x| of the last bin
Clip = Callable[[NDArray[np.float64], float], float]


def histograms(fp32: onnx.ModelProto, tensors: list[str], batches: PoolBatches) -> dict[str, Histogram]:
    """Of every tensor's absolute values; a range that grows doubles, so that bins can be joined."""
    model = onnx.ModelProto()
    model.CopyFrom(fp32)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in tensors)
    session = ort.InferenceSession(model.SerializeToString())
    found: dict[str, Histogram] = {}
    for images in batches:
        for name, values in zip(tensors, session.run(tensors, {"images": images}), strict=True):
            absolute = np.abs(np.ravel(values))
            counts, top = found.get(name, (np.zeros(BINS), max(2 * float(absolute.max()), 1e-6)))
            while absolute.max() > top:
                counts, top = np.concatenate([counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2)]), 2 * top
            index = np.minimum((absolute * (BINS / top)).astype(np.int32), BINS - 1)
            found[name] = counts + np.bincount(index, minlength=BINS), top
    return found


def least_error(counts: NDArray[np.float64], top: float) -> float:
    """The clip whose 8-bit rounding and clipping have the smallest squared error."""
    centres = (np.arange(BINS) + 0.5) * top / BINS
    last = int(np.flatnonzero(counts)[-1]) + 1
    clips = [step * top / BINS for step in range(max(32, last // 8), last + 1, max(1, last // 128))]
    errors = [
        (counts * (np.minimum(np.round(centres / (clip / 127)), 127) * clip / 127 - centres) ** 2).sum() for clip in clips
    ]
    return clips[int(np.argmin(errors))]


def percentile(share: float) -> Clip:
    return lambda counts, top: float((np.searchsorted(np.cumsum(counts) / counts.sum(), share) + 1) * top / BINS)


CLIPS: dict[str, Clip] = {
    "least squared error": least_error,
    "percentile 99.999": percentile(0.99999),
    "percentile 99.99": percentile(0.9999),
    "maximum": percentile(1.0),
}


def with_clips(int8: onnx.ModelProto, found: dict[str, Histogram], clip: Clip) -> onnx.ModelProto:
    """New scales; quantizers that share one (concatenations) go on sharing, over their joined histogram."""
    model = onnx.ModelProto()
    model.CopyFrom(int8)
    constants = {item.name: item for item in model.graph.initializer}
    groups: dict[float, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in found:
            groups.setdefault(float(numpy_helper.to_array(constants[node.input[1]])), []).append(node)
    for nodes in groups.values():
        top = max(found[node.input[0]][1] for node in nodes)
        joined = np.zeros(BINS)
        for node in nodes:
            counts, own = found[node.input[0]]
            place = np.minimum(((np.arange(BINS) + 0.5) * own / top).astype(int), BINS - 1)
            joined += np.bincount(place, weights=counts, minlength=BINS)
        scale = np.float32(clip(joined, top) / 127)
        for node in nodes:
            constants[node.input[1]].CopyFrom(numpy_helper.from_array(np.array(scale), node.input[1]))
    return model


def measure(name: str) -> dict[str, Any]:
    model = load_model(DATA / "weights" / f"{name}_coco_dequant_state_fp16.pt", ImportOptions(imgsz=640))
    folder = WORK / "ranges"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model.graph, folder / "fp32.onnx")
    with Pool.open(coco_pool()) as pool:
        batches = PoolBatches(pool, time_spread(pool.entries(), FRAMES, 0), model.preprocess)
        int8 = qdq_from_onnx(model.graph, batches, FRAMES, "tensorrt")
        quantized = [node.input[0] for node in int8.graph.node if node.op_type == "QuantizeLinear"]
        found = histograms(model.graph, list(dict.fromkeys(quantized)), batches)
    graphs = {"NNCF's own": int8, **{kind: with_clips(int8, found, clip) for kind, clip in CLIPS.items()}}
    val = DATA / "coco_val2017"
    names = tuple(yaml.safe_load((val / "data.yaml").read_text(encoding="utf-8"))["names"].values())
    gate = Gate(
        LabeledGateFrames(read_labels(list_images(val / "images"), len(names)), model.preprocess), Thresholds(0.25, 0.7), names
    )
    candidates = [Candidate("fp32", "any", "onnxruntime", folder / "fp32.onnx")]
    for index, graph in enumerate(graphs.values()):
        path = folder / f"{index}.onnx"
        onnx.save(graph, path)
        candidates.append(Candidate("int8", "tensorrt", "onnxruntime", path))
    rows = judge(run_candidates(candidates, gate, []), gate)
    return {kind: row.model_dump() for kind, row in zip(graphs, rows[1:], strict=True)}


def main() -> None:
    write_result("range_estimators", {name: measure(name) for name in ("yolo11n", "yolov8n")})


if __name__ == "__main__":
    main()
