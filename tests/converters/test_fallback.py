"""A real model made to fail: one channel of one layer is scaled until its per-tensor range drowns the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import pytest

from calibration.batches import PoolBatches
from calibration.gate_frames import PoolGateFrames
from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from converters.fallback import Quantised, fall_back
from converters.gate import Candidate, Gate, Run, candidates_of, run_candidates
from converters.int8_search import Calibrated, search_int8
from converters.onnx_from_torch import onnx_from_torch
from converters.qdq_from_onnx import qdq_from_onnx
from converters.sensitivity import Sensitivity, SensitivityScan
from runtime.images import list_images
from runtime.pool import Pool
from runtime.pool_import import add_image_file
from runtime.postprocess import Thresholds
from runtime.preprocess import Preprocess
from tests.converters.saturating import BROKEN, with_a_saturating_channel


@dataclass
class Case:
    model: onnx.ModelProto
    gate: Gate
    calibrated: Calibrated
    floats: dict[Candidate, Run]
    told: list[str]


@pytest.fixture
def case(data_dir: Path, tmp_path: Path) -> Iterator[Case]:
    preprocess = Preprocess((320, 320))
    checkpoint = load_checkpoint(data_dir / "weights" / "yolo11n_coco_dequant_state_fp16.pt")
    model = with_a_saturating_channel(onnx_from_torch(detector_from_checkpoint(checkpoint), preprocess), 1e4)
    onnx.save(model, tmp_path / "model.fp32.onnx")
    with Pool.create(tmp_path / "pool") as pool:
        for index, path in enumerate(list_images(data_dir / "coco_train2017" / "images")[:40]):
            add_image_file(pool, path, "coco", float(index))
        entries = pool.entries()
        told: list[str] = []
        frames = PoolGateFrames(pool, entries[16:], preprocess)
        gate = Gate(frames, Thresholds(0.25, 0.7), checkpoint.names)
        batches = PoolBatches(pool, entries[:16], preprocess)
        calibrated = Calibrated(model, batches, 16, PoolGateFrames(pool, entries[:16], preprocess), tmp_path, told.append)
        floats = run_candidates(
            candidates_of([("fp32", "any", 1, tmp_path / "model.fp32.onnx")], ["onnxruntime", "openvino"]), gate, []
        )
        yield Case(model, gate, calibrated, floats, told)


@pytest.mark.data
@pytest.mark.slow
def test_search_int8__finds_the_layer_that_saturates_and_returns_it(case: Case) -> None:
    search = search_int8("cpu", case.calibrated, case.gate, case.floats)
    assert search.attempts[0].boxes >= 20
    assert all(row.refused for row in search.attempts), "INT8 must fail at first, with 7-bit weights too"
    assert search.holds, case.told
    assert search.steps[0].layers == (BROKEN,)
    assert search.steps[-1].refused == ""
    assert BROKEN in search.file.float_layers, "it must survive the pruning: nothing else mends the model"
    best = max(search.sensitivity, key=lambda item: item.gain)
    assert BROKEN in best.layers
    lines = [line for line in case.told if BROKEN in line]
    assert lines, "each step is told"
    assert all(" ms" in line for line in lines)


@pytest.mark.data
@pytest.mark.slow
def test_fall_back__goes_on_where_openvino_refuses_a_mixture(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its passes fail where the convolution before attention's split is float and the one behind it has INT8 weights."""
    calibrated = case.calibrated
    int8 = qdq_from_onnx(calibrated.fp32, calibrated.batches, calibrated.count, "cpu")
    scan = SensitivityScan(calibrated.fp32, int8, "openvino", calibrated.frames, 0.7)
    mixture = ("/detector/model.10/cv1/conv/Conv", "/detector/model.10/m/m.0/attn/pe/conv/Conv")
    refused = scan.of([layer for layer in scan.layers if layer.name in mixture])
    assert (refused.layers, refused.gain) == (mixture, 0.0)
    assert refused.refused == "openvino refuses it: Default output not supported"
    ranking = [replace(refused, gain=10.0), Sensitivity((BROKEN,), 0.0, 9.0)]
    monkeypatch.setattr(scan, "stretches", lambda: ranking)
    reference = next(run for candidate, run in case.floats.items() if candidate.is_reference)
    found = fall_back(Quantised(calibrated.fp32, int8, "openvino", "cpu"), scan, reference, case.gate, 1e9, case.told.append)
    assert [step.layers for step in found.steps] == [(BROKEN,)]
    assert found.holds, case.told
    assert any(told.startswith(f"{' to '.join(mixture)} stays INT8: openvino refuses it in float (") for told in case.told)
