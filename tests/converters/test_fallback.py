"""A real model made to fail: one channel of one layer is scaled until its per-tensor range drowns the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.batches import PoolBatches
from calibration.gate_frames import PoolGateFrames
from converters.checkpoint import detector_from_checkpoint, load_checkpoint
from converters.gate import Candidate, Gate, Run, candidates_of, run_candidates
from converters.int8_search import Calibrated, search_int8
from converters.onnx_from_torch import onnx_from_torch
from runtime.images import list_images
from runtime.pool import Pool
from runtime.pool_import import add_image_file
from runtime.postprocess import Thresholds
from runtime.preprocess import Preprocess

BROKEN = "/detector/model.3/conv/Conv"
CONSUMER = "/detector/model.4/cv1/conv/Conv"


def with_a_saturating_channel(model: onnx.ModelProto, scale: float) -> onnx.ModelProto:
    """The least used channel of `BROKEN` grows `scale`-fold and its only consumer forgets it: FP32 hardly changes."""
    broken = onnx.ModelProto()
    broken.CopyFrom(model)
    nodes = {node.name: node for node in broken.graph.node}
    weights = {item.name: item for item in broken.graph.initializer}

    def change(name: str, values: np.ndarray) -> None:
        weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))

    reader = numpy_helper.to_array(weights[nodes[CONSUMER].input[1]]).copy()
    channel = int(np.abs(reader).sum(axis=(0, 2, 3)).argmin())
    reader[:, channel] = 0
    change(nodes[CONSUMER].input[1], reader)
    for name in nodes[BROKEN].input[1:]:
        values = numpy_helper.to_array(weights[name]).copy()
        values[channel] = np.abs(values[channel]) * scale
        change(name, values)
    return broken


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
        calibrated = Calibrated(model, batches, 16, tmp_path, told.append)
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
    assert search.steps[0].layer == BROKEN
    assert search.steps[-1].refused == ""
    assert BROKEN in search.file.float_layers, "it must survive the pruning: nothing else mends the model"
    best = max(search.sensitivity, key=lambda item: item.gain)
    assert BROKEN in best.layers
    lines = [line for line in case.told if BROKEN in line]
    assert lines, "each step is told"
    assert all(" ms" in line for line in lines)
