"""Every family's deployed graph against its original: the largest difference of a box edge and of a score.

Real photographs. Weights are random but for the two COCO models and the YOLOX; normalisation is fitted to the photographs
and the last convolutions are rescaled, so that what the head says depends on the image and differs between anchors.
Scales of normalisation are a half (of queries and keys a quarter): with unit ones random layers amplify rounding until
torch in single precision differs from torch in double by pixels (YOLOv9t, YOLO12n), and no export could be judged.
Nothing is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import DATA, write_result
from converters.export_check import MAX_BOX_PX, MAX_SCORE, check_export
from converters.imported import ImportedModel, load_model
from converters.onnx_from_torch import Detector, import_detector
from runtime.images import list_images, read_image
from runtime.preprocess import Preprocess
from tests.converters.detectors import spread_detector

FAMILIES = ("yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "yolov8s", "yolo11s", "yolo26s")
REAL = (
    "yolo11n_coco_dequant_state_fp16.pt",
    "yolov8n_coco_dequant_state_fp16.pt",
    "bigisland_yolox_nano.onnx",
)
CLASSES = tuple(f"class_{index}" for index in range(80))
IMAGES = 4
SIDE = 640


def canvases(preprocess: Preprocess) -> Iterator[NDArray[np.uint8]]:
    """The first photographs of coco_val2017, letterboxed."""
    for path in list_images(DATA / "coco_val2017" / "images")[:IMAGES]:
        canvas = preprocess.buffer()
        preprocess.letterbox(read_image(path), canvas[0])
        yield canvas


def models() -> Iterator[tuple[str, str, ImportedModel]]:
    """Name, kind of weights, model."""
    batch = np.concatenate(list(canvases(Preprocess((SIDE, SIDE)))))
    photographs = torch.from_numpy(np.ascontiguousarray(batch[..., ::-1].transpose(0, 3, 1, 2))).float() / 255
    for name in FAMILIES:
        detector = spread_detector(name, CLASSES, photographs)
        yield name, "random, normalised on the photographs", import_detector(Detector(detector, name, CLASSES, SIDE, {}), None)
    for file in REAL:
        yield Path(file).stem, "real", load_model(DATA / "weights" / file)


def main() -> None:
    """Measures and writes `results/families.json`."""
    rows: dict[str, Any] = {}
    for name, weights, imported in models():
        parity = asdict(check_export(imported, canvases(imported.preprocess)))
        rows[name] = {
            "weights": weights,
            "size_wh": imported.preprocess.size_wh,
            "nms_on_host": imported.nms,
            "nodes": len(imported.graph.graph.node),
            **parity,
        }
    write_result("families", {"images": IMAGES, "bar": {"max_box_px": MAX_BOX_PX, "max_score": MAX_SCORE}, "models": rows})


if __name__ == "__main__":
    main()
