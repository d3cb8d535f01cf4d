"""OpenVINO's several streams are used only where they compute what one computes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from calibration.batches import PoolBatches
from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from converters.onnx_from_torch import onnx_from_torch
from converters.qdq_from_onnx import qdq_from_onnx
from runtime.backends import open_model
from runtime.backends.openvino_streams import compiled_for, is_near
from runtime.images import list_images
from runtime.pool import Pool
from runtime.pool_import import add_image_files
from runtime.preprocess import Preprocess

RIGHT = {
    "boxes": np.full((1, 4, 4), 32, np.float32),
    "scores": np.array([[0.9, 0.5, 0.01, 0]], np.float32),
    "embedding": np.full((1, 4), 0.5, np.float32),
}


class Compiled:
    """Stands for a compiled model, whose requests give what they are told to."""

    def __init__(self, *outputs: dict[str, Any]) -> None:
        self.inputs = [SimpleNamespace(shape=(1, 8, 8, 3))]
        self._outputs, self._asked = outputs, 0

    def create_infer_request(self) -> SimpleNamespace:
        found = self._outputs[self._asked % len(self._outputs)]
        self._asked += 1
        return SimpleNamespace(
            start_async=lambda _: None, wait=lambda: None, get_tensor=lambda name: SimpleNamespace(data=found[name])
        )


def compiler(*several: Compiled) -> tuple[Any, list[int]]:
    """Compiles right for one stream, and each of `several` in its turn for more; and what it was asked for."""
    asked: list[int] = []

    def compile_for(streams: int) -> Compiled:
        asked.append(streams)
        return Compiled(RIGHT) if streams == 1 else several[min(len(asked) - 2, len(several) - 1)]

    return compile_for, asked


def test_compiled_for__again_until_each_stream_computes_what_one_does(caplog: pytest.LogCaptureFixture) -> None:
    wrong = {**RIGHT, "embedding": np.array([[0.7, 0.3, 0.5, 0.5]], np.float32)}
    good = Compiled(RIGHT)
    compile_for, asked = compiler(Compiled(wrong), Compiled(RIGHT, wrong), good)  # both streams, one of them, none
    assert compiled_for(2, compile_for) == (good, 2)
    assert asked == [1, 2, 2, 2]
    assert len(caplog.records) == 2
    compile_for, asked = compiler(Compiled(wrong))
    assert compiled_for(2, compile_for)[1] == 1, "rather slow than wrong"
    assert asked.count(2) == 8
    compile_for, asked = compiler()
    assert compiled_for(1, compile_for)[1] == 1
    assert asked == [1]


@pytest.mark.parametrize(
    ("name", "changed", "near"),
    [
        ("scores", [[0.9, 0.5, 0.02, 0]], True),
        ("scores", [[0.9, 0.4, 0.01, 0]], False),
        ("boxes", np.full((1, 4, 4), 32.5), True),
        ("boxes", np.full((1, 4, 4), 40), False),
        ("embedding", [[0.5, 0.5, 0.5, np.nan]], False),
    ],
)
def test_is_near__but_for_rounding(name: str, changed: Any, near: bool) -> None:
    assert is_near({**RIGHT, name: np.array(changed, np.float32)}, RIGHT) == near


@pytest.mark.data
@pytest.mark.slow
def test_openvino__int8_in_two_streams_is_int8_in_one(data_dir: Path, tmp_path: Path) -> None:
    """A real detector's INT8 file, compiled three times: without a look at what came out about every fourth is wrong here."""
    preprocess = Preprocess((320, 320))
    checkpoint = load_checkpoint(data_dir / "weights" / "yolo11n_coco_dequant_state_fp16.pt")
    with Pool.create(tmp_path / "pool") as pool:
        add_image_files(pool, list_images(data_dir / "coco_train2017" / "images")[:8], "coco", 0.0, 1.0)
        fp32 = onnx_from_torch(detector_from_checkpoint(checkpoint), preprocess)
        onnx.save(qdq_from_onnx(fp32, PoolBatches(pool, pool.entries(), preprocess), 8, "cpu"), tmp_path / "int8.onnx")
    path = tmp_path / "int8.onnx"
    images = np.random.default_rng(1).integers(0, 256, (1, 320, 320, 3), dtype=np.uint8)
    one = open_model("openvino", path, "int8", threads=2).infer(images).scores.copy()
    for _ in range(3):
        two = open_model("openvino", path, "int8", threads=2, streams=2)
        np.testing.assert_allclose(two.infer(images).scores, one, atol=1e-3)
        two.close()
