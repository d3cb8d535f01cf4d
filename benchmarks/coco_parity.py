"""The deployed bundle against Ultralytics' own validation of the same weights: coco_val2017, 640, one COCO evaluator.

Both sides keep boxes down to confidence 0.001, suppress at IoU 0.7 and keep 300 boxes an image at most.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml

from benchmarks.common import DATA, WORK, coco_bundle, write_result
from calibration.accuracy import EVALUATION_CONFIDENCE, Accuracy, accuracy, evaluate
from calibration.labels import LabeledImage, read_labels
from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from converters.onnx_from_torch import onnx_from_torch
from runtime.backends import open_model
from runtime.bundle import Bundle
from runtime.detections import Detections
from runtime.images import list_images, read_image
from runtime.pipeline import Pipeline
from runtime.postprocess import Thresholds

VAL = DATA / "coco_val2017"


def ultralytics_accuracy(model: str, items: tuple[LabeledImage, ...], names: list[str]) -> Accuracy:
    """Ultralytics' DetectionValidator with the weights; its boxes, scored by the evaluator that scores ours."""
    checkpoint = load_checkpoint(DATA / "weights" / f"{model}_coco_dequant_state_fp16.pt")
    return validated(detector_from_checkpoint(checkpoint), items, names)


def validated(model: object, items: tuple[LabeledImage, ...], names: list[str]) -> Accuracy:
    """Ultralytics' DetectionValidator over coco_val2017 with a detector or the path of an export."""
    from ultralytics.models.yolo.detect import DetectionValidator

    folder = WORK / "ultralytics-val"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(VAL / "images", folder / "images")  # it writes a label cache beside the images
    shutil.copytree(VAL / "labels", folder / "labels")
    content = {"path": str(folder), "train": "images", "val": "images", "names": dict(enumerate(names))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    settings = {
        "data": str(folder / "data.yaml"), "imgsz": 640, "batch": 8, "conf": EVALUATION_CONFIDENCE, "iou": 0.7, "max_det": 300,
        "rect": False, "save_json": True, "plots": False, "device": "cpu", "workers": 0, "half": False, "mode": "val",
    }  # fmt: skip
    validator = DetectionValidator(args=settings, save_dir=folder)
    validator(model=model)
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads((folder / "predictions.json").read_text(encoding="utf-8")):
        rows.setdefault(Path(row["file_name"]).stem, []).append(row)
    back = {coco_id: index for index, coco_id in enumerate(validator.class_map)}
    return accuracy([(_truth(item), _detections(rows.get(item.path.stem, []), back)) for item in items], names, 0.25)


def _truth(item: LabeledImage) -> Detections:
    height, width = read_image(item.path).shape[:2]
    return item.truth((width, height))


def _detections(rows: list[dict[str, Any]], back: dict[int, int]) -> Detections:
    boxes = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = np.array([row["score"] for row in rows], np.float32)
    return Detections(boxes, scores, np.array([back[row["category_id"]] for row in rows], np.int32))


def accuracy_with_k(model: str, k: int, items: tuple[LabeledImage, ...], names: list[str]) -> Accuracy:
    """The FP32 graph with another k, under ONNX Runtime."""
    bundle = coco_bundle(model)
    detector = detector_from_checkpoint(load_checkpoint(DATA / "weights" / f"{model}_coco_dequant_state_fp16.pt"))
    path = WORK / f"{model}-k{k}.onnx"
    onnx.save(onnx_from_torch(detector, bundle.preprocess, top_k=k), path)
    backend = open_model("onnxruntime", path, "fp32")
    pipeline = Pipeline(bundle, backend, Thresholds(EVALUATION_CONFIDENCE, 0.7))
    return evaluate(pipeline.detect, items, names, 0.25)


def signed_accuracy(bundle: Bundle, items: tuple[LabeledImage, ...], names: list[str]) -> Accuracy:
    """The INT8 file with its activations written as int8 again: the same real numbers, zero-points moved by -128."""
    model = onnx.load(bundle.model_path("int8"))
    constants = {item.name: item for item in model.graph.initializer}
    for name in {node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"}:
        moved = onnx.numpy_helper.to_array(constants[name]).astype(np.int16) - 128
        constants[name].CopyFrom(onnx.numpy_helper.from_array(moved.astype(np.int8), name))
    del model.graph.value_info[:]
    path = WORK / f"{bundle.manifest.name}-signed.onnx"
    onnx.save(model, path)
    pipeline = Pipeline(bundle, open_model("openvino", path, "int8"), Thresholds(EVALUATION_CONFIDENCE, 0.7))
    return evaluate(pipeline.detect, items, names, 0.25)


def main() -> None:
    names = list(yaml.safe_load((VAL / "data.yaml").read_text(encoding="utf-8"))["names"].values())
    items = read_labels(list_images(VAL / "images"), len(names))
    figures: dict[str, Any] = {"images": len(items)}
    for model in ("yolo11n", "yolov8n"):
        bundle = coco_bundle(model)
        rows = {"ultralytics validator, torch": asdict(ultralytics_accuracy(model, items, names))}
        for precision in ("fp32", "int8"):
            for engine in ("onnxruntime", "openvino"):
                pipeline = Pipeline.load(bundle, engine, precision, confidence=EVALUATION_CONFIDENCE)
                rows[f"bundle {precision}, {engine}"] = asdict(evaluate(pipeline.detect, items, names, 0.25))
                pipeline.close()
        rows["bundle int8 with signed activations, as NNCF writes them, openvino"] = asdict(
            signed_accuracy(bundle, items, names)
        )
        for k in (300, 600):
            rows[f"fp32 with k = {k}, onnxruntime"] = asdict(accuracy_with_k(model, k, items, names))
        reference = rows["ultralytics validator, torch"]["map50_95"]
        difference = {name: round(row["map50_95"] - reference, 5) for name, row in rows.items()}
        figures[model] = {
            "accuracy": rows,
            "map50_95_minus_ultralytics": difference,
            "preferred": bundle.manifest.preferred.model_dump(),
        }
    write_result("coco_parity", figures)


if __name__ == "__main__":
    main()
