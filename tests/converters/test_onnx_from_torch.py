from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from converters.architecture import MODEL_NAMES
from converters.checkpoint import (
    Checkpoint,
    build_model,
    detector_from_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from converters.errors import CheckpointError
from converters.graph_cleanup import with_batch
from converters.graph_passes import uses_nms
from converters.onnx_from_torch import onnx_from_torch
from edge.torch_detector import torch_detector
from edge.yolo import build_detector
from runtime.backends import open_model
from runtime.detections import box_iou
from runtime.postprocess import Thresholds, detections_from_outputs
from runtime.preprocess import Preprocess
from runtime.sources.simulated import Line


@pytest.mark.parametrize("model", ["yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n"])
def test_onnx_from_torch__every_family_gives_the_detections_of_torch(tmp_path: Path, model: str) -> None:
    preprocess = Preprocess((96, 64))
    detector = build_detector(model, ["a", "b", "c"], seed=1).eval()
    graph = onnx_from_torch(detector, preprocess)
    onnx.save(graph, tmp_path / "model.onnx")
    end_to_end = model in ("yolov10n", "yolo26n")
    assert uses_nms(graph) is not end_to_end
    image = Line(2, (120, 90)).image(0)
    canvas = preprocess.buffer()
    letterbox = preprocess.letterbox(image, canvas[0])
    outputs = open_model("onnxruntime", tmp_path / "model.onnx", "fp32").infer(canvas)
    ours = detections_from_outputs(outputs, 0, letterbox, Thresholds(0.001, None if end_to_end else 0.7))
    theirs = torch_detector(detector, preprocess)(image)
    # Fresh weights give many equal scores, whose order is not defined: compare the sorted ones.
    count = min(len(ours), len(theirs))
    assert abs(len(ours) - len(theirs)) <= 2
    np.testing.assert_allclose(ours.confidence[:count], theirs.confidence[:count], atol=2e-4)
    overlap = box_iou(ours.xyxy, theirs.xyxy).max(axis=1, initial=0)
    assert (overlap > 0.95).mean() > 0.9  # the same boxes, whatever their order


def test_onnx_from_torch__static_batch(tmp_path: Path) -> None:
    detector = build_detector("yolo11n", ["a"], seed=1).eval()
    onnx.save(with_batch(onnx_from_torch(detector, Preprocess((64, 64))), 3), tmp_path / "m.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    outputs = open_model("onnxruntime", tmp_path / "m.onnx", "fp32").infer(images)
    assert outputs.boxes.shape[0] == outputs.embedding.shape[0] == 3
    assert not np.allclose(outputs.embedding[0], outputs.embedding[1])


def test_load_checkpoint__ours_comes_back(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    assert (loaded.model, loaded.kind, loaded.imgsz, loaded.lineage) == ("yolo11n", "detector", 64, {"seed": "3"})
    assert not detector_from_checkpoint(loaded).training


@pytest.mark.parametrize("model", ["yolov5n", "yolov8n", "yolov10n", "yolo11s", "yolo26n"])
def test_load_checkpoint__a_bare_state_dict_is_recognised_by_its_shapes(tmp_path: Path, model: str) -> None:
    torch.save(
        {
            key: value.half() if value.is_floating_point() else value
            for key, value in build_model(model, 7).state_dict().items()
        },
        tmp_path / "w.pt",
    )
    loaded = load_checkpoint(tmp_path / "w.pt")
    assert (loaded.model, len(loaded.names)) == (model, 7)
    detector_from_checkpoint(loaded)


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must never be printed",))


def test_load_checkpoint__a_pickle_that_runs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": _Evil()}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Evil()))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match="run code"):
            load_checkpoint(tmp_path / name)
    assert "never" not in capsys.readouterr().out


def test_load_checkpoint__what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("this is text")
    (tmp_path / "model.onnx").touch()
    torch.save({"format": "edgeloop.checkpoint/1"}, tmp_path / "bare.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"format": "edgeloop.checkpoint/9", "state": {}}, tmp_path / "newer.pt")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    odd = build_model("yolo11n", 4).state_dict()
    odd["model.5.conv.weight"] = torch.zeros(3, 3, 3, 3)
    torch.save(odd, tmp_path / "odd.pt")
    for name, message in (
        ("none.pt", "no such checkpoint"), ("model.onnx", "is no file of weights, by its name; name a .pt"), ("text.pt", "plain tensors"),
        ("bare.pt", "incomplete checkpoint"), ("list.pt", "expected edgeloop.checkpoint/1"),
        ("newer.pt", "expected edgeloop.checkpoint/1"), ("other.pt", "no YOLO detection head"), ("odd.pt", "fits none of the known"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / name)


def test_detector_from_checkpoint__another_architecture(checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    wrong = Checkpoint("yolov8n", loaded.names, loaded.state)
    with pytest.raises(CheckpointError, match="does not fit yolov8n"):
        detector_from_checkpoint(wrong)
    with pytest.raises(CheckpointError, match="is a backbone"):
        detector_from_checkpoint(Checkpoint("yolo11n", (), {}, kind="backbone"))


def test_save_checkpoint__unwritable(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(Path("/proc/none/x.pt"), load_checkpoint(checkpoint))


def test_build_model__unknown_name() -> None:
    with pytest.raises(CheckpointError, match="known are yolov5n"):
        build_model("yolo99x", 1)
    assert len(MODEL_NAMES) == 39


@pytest.mark.data
@pytest.mark.parametrize("model", ["yolo11n", "yolov8n"])
def test_load_checkpoint__coco_weights(data_dir: Path, model: str) -> None:
    loaded = load_checkpoint(data_dir / "weights" / f"{model}_coco_dequant_state_fp16.pt")
    assert loaded.model == model
    assert loaded.names[:3] == ("person", "bicycle", "car")
