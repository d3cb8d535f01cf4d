from __future__ import annotations

import pytest

from runtime.bundle import Bundle


def test_fp32_graph__parses_and_builds_with_tensorrt_rtx(bundle: Bundle) -> None:
    """The real builder, which needs no GPU: uint8 input, in-graph top-k and embedding are valid TensorRT."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed; pip install 'edgeloop[tensorrt-rtx]'")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse_from_file(str(bundle.model_path("fp32")))
    assert parsed, [str(parser.get_error(index)) for index in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert memoryview(plan).nbytes > 1_000_000
