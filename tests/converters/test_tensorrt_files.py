"""The files for TensorRT, through the real builder of TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.batches import PoolBatches
from converters.checkpoint import Checkpoint, save_checkpoint
from converters.half_floats import with_half_floats
from converters.imported import load_model
from converters.model_files import ModelFile, shipped_files
from converters.qdq_from_onnx import qdq_from_onnx
from edge.yolo import build_detector
from runtime.pool import Pool
from runtime.tensorrt.engine_from_onnx import BuildOptions, engine_from_onnx
from runtime.tensorrt.flavour import load_flavour


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov8n", "yolo11n", "yolov10n", "yolo26n"])
def test_shipped_files__fp32_fp16_and_int8_are_built(name: str, tmp_path: Path, pool_dir: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeloop[tensorrt-rtx]'")
    detector = build_detector(name, ["a", "b"], seed=1)
    save_checkpoint(tmp_path / "detector.pt", Checkpoint(name, ("a", "b"), detector.state_dict(), imgsz=64))
    model = load_model(tmp_path / "detector.pt")
    files = [
        ModelFile.write(tmp_path, "fp32", "any", model.graph),
        ModelFile.write(tmp_path, "fp16", "tensorrt-strong", with_half_floats(model.graph)),
    ]
    with Pool.open(pool_dir) as pool:
        batches = PoolBatches(pool, pool.entries()[:4], model.preprocess)
        signed = ModelFile.write(tmp_path, "int8", "tensorrt", qdq_from_onnx(model.graph, batches, 4, "tensorrt"))
    files += shipped_files(signed)
    trt = load_flavour("tensorrt-rtx").trt
    for file in files:
        shares: list[float] = []

        def told(_: str, share: float, seen: list[float] = shares) -> None:
            seen.append(share)

        options = BuildOptions(compute_capabilities=("SM86",))
        plan = engine_from_onnx(file.path, file.precision, options, trt=trt, progress=told)
        assert len(plan) > 500_000, file.path.name
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)


def test_qdq_for_tensorrt__zero_points_zero_one_scale_a_tensor_float_bias(
    checkpoint: Path, pool_dir: Path, tmp_path: Path
) -> None:
    model = load_model(checkpoint)
    with Pool.open(pool_dir) as pool:
        int8 = qdq_from_onnx(model.graph, PoolBatches(pool, pool.entries()[:4], model.preprocess), 4, "tensorrt")
    constants = {item.name: numpy_helper.to_array(item) for item in int8.graph.initializer}
    for node in int8.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero_point = constants[node.input[1]], constants[node.input[2]]
            assert scale.size == 1
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
        if node.op_type == "Conv" and len(node.input) == 3:
            assert constants[node.input[2]].dtype == np.float32
    stem = next(node for node in int8.graph.node if node.op_type == "Conv")
    assert stem.input[1] in constants, "the first convolution stays in float: the image would lose a bit"
    onnx.checker.check_model(int8, full_check=True)
