"""What returns to float in a file that already holds, on a real model and real pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.batches import PoolBatches
from calibration.gate_frames import PoolGateFrames
from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from converters.fallback import Quantised
from converters.gate import Candidate, Gate, run_candidates
from converters.multiply_adds import multiply_adds
from converters.onnx_from_torch import onnx_from_torch
from converters.polish import Polish
from converters.qdq_from_onnx import qdq_from_onnx
from converters.quantizer_passes import with_float_layers
from converters.sensitivity import SensitivityScan
from runtime.images import list_images
from runtime.pool import Pool
from runtime.pool_import import add_image_file
from runtime.postprocess import Thresholds
from runtime.preprocess import Preprocess


@pytest.mark.data
@pytest.mark.slow
def test_polish__tensorrt_spends_a_tenth_of_the_arithmetic_where_it_gains(data_dir: Path, tmp_path: Path) -> None:
    preprocess = Preprocess((320, 320))
    checkpoint = load_checkpoint(data_dir / "weights" / "yolo11n_coco_dequant_state_fp16.pt")
    fp32 = onnx_from_torch(detector_from_checkpoint(checkpoint), preprocess)
    (tmp_path / "fp32.onnx").write_bytes(fp32.SerializeToString())
    with Pool.create(tmp_path / "pool") as pool:
        for index, path in enumerate(list_images(data_dir / "coco_train2017" / "images")[:24]):
            add_image_file(pool, path, "coco", float(index))
        entries = pool.entries()
        gate = Gate(PoolGateFrames(pool, entries[8:], preprocess), Thresholds(0.25, 0.7), checkpoint.names)
        int8 = qdq_from_onnx(fp32, PoolBatches(pool, entries[:8], preprocess), 8, "tensorrt")
        reference = Candidate("fp32", "any", "onnxruntime", tmp_path / "fp32.onnx")
        run = run_candidates([reference], gate, [])[reference]
        scan = SensitivityScan(fp32, int8, "onnxruntime", gate)
        told: list[str] = []
        polish = Polish(Quantised(fp32, int8, "onnxruntime", "tensorrt"), scan, run, gate, told.append)
        returned = polish.layers(scan.stretches())
        spent, work = 0, multiply_adds(fp32)
        spent = sum(work[layer.name] for layer in returned)
        after = SensitivityScan(fp32, with_float_layers(int8, fp32, returned), "onnxruntime", gate)
    assert returned, "INT8 hurts somewhere, and a tenth of the arithmetic pays for some of it"
    assert 0 < spent <= 0.10 * sum(work.values())
    assert after.base < scan.base, "detections come closer to FP32's"
    assert len(told) >= 1
