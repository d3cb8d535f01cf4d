from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from converters.errors import ConversionError
from converters.export_check import check_export
from converters.imported import ImportedModel
from converters.onnx_from_torch import Detector, import_detector, torch_reference
from converters.predictions import RawPredictions
from runtime.preprocess import Preprocess
from tests.converters.detectors import NAMES, noise, spread_detector

BOXES = np.random.default_rng(0).uniform(0, 64, (40, 4)).astype(np.float32)
SCORES = np.random.default_rng(1).uniform(0, 1, (40, 3)).astype(np.float32)
K = 30


def saying(boxes: NDArray[np.float32], scores: NDArray[np.float32], classes: NDArray[np.int64]) -> onnx.ModelProto:
    """A graph that says the same of every image."""
    values: dict[str, NDArray[Any]] = {"boxes": boxes[None], "scores": scores[None], "classes": classes[None]}
    constants = [numpy_helper.from_array(value, f"{name}_value") for name, value in values.items()]
    nodes = [helper.make_node("Identity", [f"{name}_value"], [name]) for name in values]
    image = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 64, 64, 3])
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64 if name == "classes" else TensorProto.FLOAT, value.shape)
        for name, value in values.items()
    ]
    graph = helper.make_graph(nodes, "constant", [image], outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def model(
    rows: NDArray[np.intp], shift_px: float = 0.0, shift_score: float = 0.0, flip: int = 0, complete: bool = True
) -> ImportedModel:
    """A graph that gives these (anchor, class) pairs, changed; its reference has all of them."""
    anchor, class_id = np.unravel_index(rows, SCORES.shape)
    boxes, scores = BOXES[anchor] + np.float32(shift_px), SCORES[anchor, class_id] + np.float32(shift_score)
    graph = saying(boxes, scores, (class_id + flip) % 3)
    raw = RawPredictions(BOXES, SCORES, complete)
    return ImportedModel(graph, "constant", NAMES, Preprocess((64, 64)), True, lambda _: raw)


BEST = np.argsort(-SCORES, axis=None)[:K]


def test_check_export__whatever_the_order() -> None:
    shuffled = np.random.default_rng(2).permutation(BEST)
    parity = check_export(model(shuffled, 0.1, 0.0005), noise((64, 64)))
    assert (parity.boxes, parity.canvases) == (2 * K, 2)
    assert parity.max_box_px == pytest.approx(0.1, abs=1e-4)
    assert parity.max_score == pytest.approx(0.0005, abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        model(BEST, shift_px=0.6),
        model(BEST, shift_score=0.002),
        model(BEST, flip=1),
        model(BEST[1:]),  # the best one is missing
        model(np.append(BEST[1:], BEST[1])),  # as many as expected, but one twice
        model(BEST, shift_px=float("nan")),
    ],
    ids=["boxes", "scores", "classes", "missing", "twice", "nan"],
)
def test_check_export__what_is_wrong_is_told(wrong: ImportedModel) -> None:
    with pytest.raises(ConversionError, match=r"differs from the original|NaN"):
        check_export(wrong, noise((64, 64)))


def test_check_export__colours_that_were_swapped() -> None:
    detector = spread_detector("yolo11n")
    imported = import_detector(Detector(detector, "yolo11n", NAMES, 64, {}), None)
    swapped = replace(imported, reference=torch_reference(detector, Preprocess((64, 64), color="bgr")))
    with pytest.raises(ConversionError, match="differs from the original"):
        check_export(swapped, noise((64, 64)))
