"""Does another estimate of the activations' ranges beat NNCF's default? COCO weights at 640 px, plain NNCF, no mending.

The default is the mean of every frame's extremes. Beside it: the extremes of all frames, the median of every frame's, the
percentiles 0.1, 0.01 and 0.001, and the histogram whose quantisation error is least in squares. The CPU form is judged
under OpenVINO, TensorRT's under ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nncf
import onnx
import yaml
from nncf.quantization.range_estimator import (
    AggregatorType,
    RangeEstimatorParameters,
    RangeEstimatorParametersSet,
    StatisticsCollectorParameters,
    StatisticsType,
)  # fmt: skip

from benchmarks.common import DATA, WORK, coco_pool, write_result
from calibration.batches import PoolBatches
from calibration.gate_frames import LabeledGateFrames
from calibration.labels import read_labels
from converters.gate import Candidate, Gate, judge, run_candidates
from converters.imported import ImportOptions, load_model
from converters.qdq_from_onnx import Family, import_nncf, qdq_from_onnx
from runtime.images import list_images
from runtime.pool import Pool
from runtime.postprocess import Thresholds

FOLDER = WORK / "range-estimators"
MODELS = ("yolo11n", "yolov8n")
FRAMES = 64
FAMILIES: tuple[tuple[Family, str], ...] = (("cpu", "openvino"), ("tensorrt", "onnxruntime"))


def estimators() -> Iterator[tuple[str, Any]]:
    """Name and NNCF's parameters."""
    sets = RangeEstimatorParametersSet
    yield "mean of extremes (default)", None
    yield "extremes", sets.MINMAX
    yield "median of extremes", sets.MEDIAN_MINMAX
    for share in (1e-3, 1e-4, 1e-5):
        of = StatisticsCollectorParameters(StatisticsType.QUANTILE, AggregatorType.MEAN, quantile_outlier_prob=share)
        yield f"percentile {share:.3%}", RangeEstimatorParameters(min=of, max=of)
    yield "histogram, least squares", sets.HISTOGRAM


def main() -> None:
    import_nncf()
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = list(yaml.safe_load((DATA / "coco_val2017" / "data.yaml").read_text(encoding="utf-8"))["names"].values())
    items = read_labels(list_images(DATA / "coco_val2017" / "images"), len(names))
    found: dict[str, Any] = {}
    with Pool.open(coco_pool()) as pool:
        entries = pool.entries()[:FRAMES]
        for name in MODELS:
            model = load_model(DATA / "weights" / f"{name}_coco_dequant_state_fp16.pt", ImportOptions(imgsz=640))
            onnx.save(model.graph, FOLDER / "fp32.onnx")
            gate = Gate(LabeledGateFrames(items, model.preprocess), Thresholds(0.25, 0.7), model.names)
            reference = run_candidates([Candidate("fp32", "any", "onnxruntime", FOLDER / "fp32.onnx")], gate, [])
            for family, engine in FAMILIES:
                for estimator, ranges in estimators():
                    batches = PoolBatches(pool, entries, model.preprocess)
                    onnx.save(qdq_from_onnx(model.graph, batches, FRAMES, family, ranges=ranges), FOLDER / "int8.onnx")
                    candidate = Candidate("int8", "cpu" if family == "cpu" else "tensorrt", engine, FOLDER / "int8.onnx")
                    row = judge({**reference, **run_candidates([candidate], gate, [])}, gate, replicates=0)[-1]
                    assert row.labeled is not None
                    found[f"{name}, {family}, {estimator}"] = {
                        "f1_against_fp32": row.f1_against_fp32,
                        "mean_score_shift": row.mean_score_shift,
                        "f1_drop": row.labeled.f1_drop,
                        "map50_95_drop": row.labeled.map50_95_drop,
                    }
                    write_result("range_estimators", {"frames": FRAMES, "nncf": nncf.__version__, "results": found})


if __name__ == "__main__":
    main()
