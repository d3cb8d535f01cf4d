"""What returns to float in a file that already holds, on a real model and real pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from calibration.batches import PoolBatches
from calibration.gate_frames import PoolGateFrames
from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from converters.fallback import Quantised
from converters.gate import Bars, Candidate, Gate, run_candidates
from converters.int8_search import Calibrated, Int8Search, Measure, polished
from converters.model_files import ModelFile
from converters.multiply_adds import multiply_adds
from converters.onnx_from_torch import onnx_from_torch
from converters.polish import polished_layers
from converters.qdq_from_onnx import qdq_from_onnx
from converters.quantizer_passes import with_float_layers
from converters.sensitivity import SensitivityScan
from runtime.images import list_images
from runtime.pool import Pool
from runtime.pool_import import add_image_file
from runtime.postprocess import Thresholds
from runtime.preprocess import Preprocess

pytestmark = [pytest.mark.data, pytest.mark.slow]


@dataclass
class Scene:
    quantised: Quantised
    scan: SensitivityScan
    calibrated: Calibrated
    told: list[str]


@pytest.fixture(scope="module")
def scene(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("polish")
    preprocess = Preprocess((320, 320))
    checkpoint = load_checkpoint(data_dir / "weights" / "yolo11n_coco_dequant_state_fp16.pt")
    fp32 = onnx_from_torch(detector_from_checkpoint(checkpoint), preprocess)
    with Pool.create(folder / "pool") as pool:
        for index, path in enumerate(list_images(data_dir / "coco_train2017" / "images")[:16]):
            add_image_file(pool, path, "coco", float(index))
        entries = pool.entries()
        frames, batches = PoolGateFrames(pool, entries, preprocess), PoolBatches(pool, entries[:8], preprocess)
        int8 = qdq_from_onnx(fp32, batches, 8, "tensorrt")
        told: list[str] = []
        scan = SensitivityScan(fp32, int8, "onnxruntime", frames, 0.7)
        quantised = Quantised(fp32, int8, "onnxruntime", "tensorrt")
        yield Scene(quantised, scan, Calibrated(fp32, batches, 8, frames, folder, told.append), told)


def test_polished_layers__tensorrt_spends_little_arithmetic_where_it_gains(scene: Scene) -> None:
    fp32, int8 = scene.quantised.fp32, scene.quantised.int8
    returned = polished_layers(scene.quantised, scene.scan, scene.scan.stretches(), scene.told.append)
    work = multiply_adds(fp32)
    after = SensitivityScan(fp32, with_float_layers(int8, fp32, returned), "onnxruntime", scene.calibrated.frames, 0.7)
    assert returned, "INT8 hurts somewhere, and a little of the arithmetic pays for some of it"
    assert 0 < sum(work[layer.name] for layer in returned) <= 0.25 * sum(work.values())
    assert after.base < scene.scan.base, "detections come closer to FP32's"
    assert scene.told


@pytest.mark.parametrize("holds", [True, False])
def test_polished__only_if_the_whole_gate_holds_then_as_well(scene: Scene, *, holds: bool) -> None:
    folder = scene.calibrated.folder
    onnx.save(scene.quantised.fp32, folder / "fp32.onnx")
    bars = Bars(agreement=0, at_threshold=0, mean_iou=0, score_shift=1, boxes=0) if holds else Bars(agreement=1.1)
    gate = Gate(scene.calibrated.frames, Thresholds(0.25, 0.7), ("thing",) * 80, bars)
    reference = run_candidates([Candidate("fp32", "any", "onnxruntime", folder / "fp32.onnx")], gate, [])
    before = Int8Search(ModelFile.write(folder, "int8", "tensorrt", scene.quantised.int8), holds=True)
    found = polished(before, scene.quantised, scene.scan, Measure(scene.calibrated, gate, reference, float("inf")))
    assert found.holds
    assert bool(found.file.float_layers) == holds
    assert len(found.attempts) == 2, "both forms that TensorRT reads were measured"
    on_disk = onnx.load(folder / "model.int8.tensorrt.onnx")
    names = {node.name for node in on_disk.graph.node}
    expected = {node.name for node in found.file.model.graph.node}
    assert names & expected == expected, "the file that holds lies on the disk again"
