"""How much the files that benchmarks/rivals.py times lose on coco_val2017: ultralytics' OpenVINO INT8 and our INT8.

All are scored by one evaluator; ultralytics' files run under its own validator.
"""

from __future__ import annotations

from dataclasses import asdict

import yaml

from benchmarks.coco_parity import VAL, validated
from benchmarks.common import coco_bundle, write_result
from benchmarks.rivals import FOLDER, export
from calibration.accuracy import EVALUATION_CONFIDENCE, evaluate
from calibration.labels import read_labels
from converters.checkpoint import import_ultralytics
from runtime.images import list_images
from runtime.pipeline import Pipeline


def main() -> None:
    export()
    import_ultralytics()
    names = list(yaml.safe_load((VAL / "data.yaml").read_text(encoding="utf-8"))["names"].values())
    items = read_labels(list_images(VAL / "images"), len(names))
    found = {
        "ultralytics, ONNX FP32": validated(str(FOLDER / "yolo11n.onnx"), items, names),
        "ultralytics, OpenVINO INT8": validated(str(FOLDER / "yolo11n_int8_openvino_model"), items, names),
    }
    for precision in ("fp32", "int8"):
        pipeline = Pipeline.load(coco_bundle(), "openvino", precision, confidence=EVALUATION_CONFIDENCE)
        found[f"edge run, OpenVINO {precision.upper()}"] = evaluate(pipeline.detect, items, names, 0.25)
        pipeline.close()
    pairs = {"ultralytics": ("ultralytics, ONNX FP32", "ultralytics, OpenVINO INT8"),
             "ours": ("edge run, OpenVINO FP32", "edge run, OpenVINO INT8")}  # fmt: skip
    lost = {name: round(found[fp32].map50_95 - found[int8].map50_95, 5) for name, (fp32, int8) in pairs.items()}
    accuracy = {name: asdict(row) for name, row in found.items()}
    write_result("rivals_accuracy", {"images": len(items), "map50_95_lost": lost, "accuracy": accuracy})


if __name__ == "__main__":
    main()
