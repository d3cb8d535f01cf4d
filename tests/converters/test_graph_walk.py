from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from converters.errors import ConversionError
from converters.graph_walk import head_features, last_convolutions
from tests.converters.detectors import export, spread_detector
from tests.converters.test_graph_passes import conv_model


class WithFeatures(torch.nn.Module):
    """A detector's predictions, and what its head reads by another way: as outputs of the graph."""

    def __init__(self, detector: torch.nn.Module) -> None:
        super().__init__()
        self.detector = detector.fuse(verbose=False)  # type: ignore[operator]  # Ultralytics'
        self.detector.model[-1].export = True
        self.detector.model[-1].register_forward_pre_hook(self._remember)

    def _remember(self, _: torch.nn.Module, inputs: tuple[list[torch.Tensor], ...]) -> None:
        self.features = list(inputs[0])

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        predictions = self.detector(images)
        return (predictions, *self.features)


@pytest.mark.parametrize("model", ["yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n"])
def test_head_features__exactly_what_the_head_reads(tmp_path: Path, model: str) -> None:
    module = WithFeatures(spread_detector(model))
    with torch.no_grad():
        module(torch.zeros(1, 3, 64, 64))
    exported = onnx.load(export(module, tmp_path / "m.onnx", 64))
    predictions, *features = (output.name for output in exported.graph.output)
    assert head_features(exported, predictions) == features


def test_last_convolutions__not_the_one_that_decodes_distances(tmp_path: Path) -> None:
    exported = onnx.load(export(spread_detector("yolov8n"), tmp_path / "m.onnx", 64))
    assert len(last_convolutions(exported, [exported.graph.output[0].name])) == 6  # boxes and classes at three sizes


def test_head_features__no_convolution_before_the_output() -> None:
    model = conv_model()
    with pytest.raises(ConversionError, match="share no feature map"):
        head_features(model, "features")
