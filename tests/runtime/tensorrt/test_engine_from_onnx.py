"""Which calls are made on which TensorRT (recording stand-in), and real builds with TensorRT-RTX, which needs no GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtime.bundle import Bundle
from runtime.errors import BackendError
from runtime.tensorrt.engine_from_onnx import BuildOptions, Precision, engine_from_onnx
from runtime.tensorrt.flavour import wants_baked_precision
from runtime.tensorrt.surface import TensorRT
from tests.runtime.tensorrt.recording import LACKS, Record, recording

SM86 = BuildOptions(compute_capabilities=("SM86",))


@pytest.fixture
def rtx() -> TensorRT:
    module: TensorRT = pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeloop[tensorrt-rtx]'")
    return module


def model(
    path: Path,
    *nodes: onnx.NodeProto,
    kind: int = TensorProto.FLOAT,
    shape: tuple[Any, ...] = (1, 4, 4, 3),
    out: tuple[Any, ...] | None = None,
    extra: tuple[onnx.TensorProto, ...] = (),
) -> Path:
    """An ONNX from x to y; a scale and an INT8 zero-point of 3 are at hand."""
    x, y = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info("y", kind, out or shape)
    held = [numpy_helper.from_array(np.float32(0.1), "scale"), numpy_helper.from_array(np.int8(3), "three"), *extra]
    graph = helper.make_graph(list(nodes), "g", [x], [y], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    return model(tmp_path / "relu.onnx", helper.make_node("Relu", ["x"], ["y"]))


def build(version: str, onnx_path: Path, precision: Precision, **changes: Any) -> Record:
    trt, record = recording(version)
    record.answers.update(changes.pop("answers", {}))
    engine_from_onnx(onnx_path, precision, changes.pop("options", BuildOptions()), trt=trt, **changes)
    return record


@pytest.mark.parametrize(
    ("version", "precision", "network_flags", "builder_flags"),
    [
        ("8.5.2.2", "fp32", 1, set()),  # EXPLICIT_BATCH is bit 0
        ("8.5.2.2", "fp16", 1, {"FP16"}),
        ("8.5.2.2", "int8", 1, {"FP16", "INT8"}),
        ("8.6.2.3", "int8", 1, {"FP16", "INT8"}),
        ("10.3.0.30", "fp32", 0, set()),
        ("10.3.0.30", "fp16", 0, {"FP16"}),
        ("10.3.0.30", "int8", 0, {"FP16", "INT8"}),
        ("10.13.0.35", "fp32", 2, set()),  # STRONGLY_TYPED is bit 1
        ("10.13.0.35", "fp16", 2, set()),
        ("10.13.0.35", "int8", 2, set()),
        ("11.0.0.114", "fp32", 2, set()),
        ("11.0.0.114", "fp16", 2, set()),
        ("11.0.0.114", "int8", 2, set()),
    ],
)
def test_engine_from_onnx__typing_by_version(
    relu: Path, version: str, precision: Precision, network_flags: int, builder_flags: set[str]
) -> None:
    record = build(version, relu, precision)
    assert record.of("Builder.create_network") == [(network_flags,)]
    assert record.flags == builder_flags


@pytest.mark.parametrize("version", LACKS)
def test_engine_from_onnx__the_rest_is_the_same_everywhere(relu: Path, version: str) -> None:
    told: list[tuple[str, float]] = []
    record = build(version, relu, "int8", options=BuildOptions(123 << 20), progress=lambda *args: told.append(args))
    assert [(str(pool), size) for pool, size in record.of("IBuilderConfig.set_memory_pool_limit")] == [("WORKSPACE", 123 << 20)]
    assert [str(value) for (value,) in record.of("IBuilderConfig.profiling_verbosity =")] == ["DETAILED"]
    assert record.of("OnnxParser.parse_from_file") == [(str(relu),)]
    assert len(record.of("IBuilderConfig.progress_monitor =")) == (0 if version.startswith("8") else 1)
    assert [told[0], told[-1]] == [("Parsing the graph", 0.0), ("Built", 1.0)]


@pytest.mark.parametrize(
    ("version", "baked"),
    [("8.5.2.2", False), ("8.6.2.3", False), ("10.3.0.30", False), ("10.13.0.35", True), ("11.0.0.114", True)],
)
def test_wants_baked_precision(version: str, baked: bool) -> None:
    assert wants_baked_precision(recording(version)[0]) is baked


def test_recording__lacks_what_the_version_lacks() -> None:
    trt, _ = recording("11.0.0.114")
    config: Any = trt.Builder(trt.ILogger()).create_builder_config()
    for use in (
        lambda: trt.BuilderFlag.FP16,
        lambda: setattr(config, "no_such_thing", 1),
        lambda: setattr(config, "int8_calibrator", None),
        lambda: config.set_calibration_profile(None),
    ):
        with pytest.raises(AttributeError):
            use()
    with pytest.raises(TypeError, match="set_flag"):
        config.set_flag()


class Timings:
    """Kernel timings in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self) -> bytes:
        return self.data

    def write(self, data: bytes) -> None:
        self.data = data


@pytest.mark.parametrize("version", LACKS)
def test_engine_from_onnx__timings_go_in_and_come_out(relu: Path, version: str) -> None:
    timing = Timings(b"before")
    record = build(version, relu, "fp16", timing=timing)
    assert record.of("IBuilderConfig.create_timing_cache") == [(b"before",)]
    assert timing.data == b"timings"


def test_engine_from_onnx__timings_of_another_gpu_are_left(relu: Path) -> None:
    timing = Timings(b"foreign")
    record = build("10.3.0.30", relu, "fp16", timing=timing, answers={"IBuilderConfig.set_timing_cache": False})
    assert record.of("IBuilderConfig.create_timing_cache") == [(b"foreign",), (b"",)]


@pytest.mark.parametrize(
    ("answers", "options", "message"),
    [
        ({"Builder.build_serialized_network": None}, BuildOptions(), r"tensorrt 8\.5\.2\.2 cannot build .*it does not say why"),
        ({}, SM86, "builds for the GPU at hand only"),
        (
            {"OnnxParser.parse_from_file": False, "OnnxParser.num_errors": 1, "ParserError.desc": "bad node"},
            BuildOptions(),
            "bad node",
        ),
    ],
)
def test_engine_from_onnx__refusals_of_the_old(
    relu: Path, answers: dict[str, Any], options: BuildOptions, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        build("8.5.2.2", relu, "fp32", answers=answers, options=options)


def test_engine_from_onnx__no_driver(relu: Path) -> None:
    def no_driver(*_: object) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")  # what Builder raises without a driver

    with pytest.raises(BackendError, match="finds no NVIDIA GPU and driver here"):
        build("10.13.0.35", relu, "fp32", answers={"Builder.create_network": no_driver})


# From here on with the real builder.


def test_rtx__builds_and_tells_progress(bundle: Bundle, rtx: TensorRT) -> None:
    told: list[tuple[str, float]] = []
    plan = engine_from_onnx(bundle.model_path("fp32"), "fp32", SM86, trt=rtx, progress=lambda *step: told.append(step))
    assert len(plan) > 1_000_000
    assert len(told) > 100
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_rtx__graph_has_the_contract_of_the_runtime(bundle: Bundle, rtx: Any) -> None:
    logger = rtx.Logger(rtx.Logger.ERROR)
    network = rtx.Builder(logger).create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    assert rtx.OnnxParser(network, logger).parse_from_file(str(bundle.model_path("fp32")))
    (image,) = (network.get_input(index) for index in range(network.num_inputs))
    outputs = {output.name: tuple(output.shape) for output in map(network.get_output, range(network.num_outputs))}
    spec = bundle.manifest.outputs
    assert (image.name, image.dtype, tuple(image.shape)) == ("images", rtx.uint8, (spec.batch, 64, 64, 3))
    assert outputs == {
        "boxes": (spec.batch, spec.top_k, 4),
        "scores": (spec.batch, spec.top_k),
        "classes": (spec.batch, spec.top_k),
        "embedding": (spec.batch, spec.embedding_dim),
    }


def test_rtx__fp32_attention_does_not_compile_for_turing(bundle: Bundle, rtx: TensorRT) -> None:
    with pytest.raises(BackendError, match=r"for SM75 \(Turing\).*attn/MatMul needs; build the FP16 file, or leave SM75 out"):
        engine_from_onnx(bundle.model_path("fp32"), "fp32", BuildOptions(compute_capabilities=("SM86", "SM75")), trt=rtx)


def test_rtx__fp16_matrix_product_compiles_for_turing_and_fp32_does_not(tmp_path: Path, rtx: TensorRT) -> None:
    sm75 = BuildOptions(compute_capabilities=("SM75",))
    product = helper.make_node("MatMul", ["x", "x"], ["y"], name="product")
    half = model(tmp_path / "half.onnx", product, kind=TensorProto.FLOAT16, shape=(1, 4, 32, 32))
    full = model(tmp_path / "full.onnx", product, shape=(1, 4, 32, 32))
    assert engine_from_onnx(half, "fp16", sm75, trt=rtx)
    with pytest.raises(BackendError, match="SM75"):
        engine_from_onnx(full, "fp32", sm75, trt=rtx)


def test_rtx__int8_convolution_builds(tmp_path: Path, rtx: TensorRT) -> None:
    zero = numpy_helper.from_array(np.int8(0), "zero")
    weight = numpy_helper.from_array(np.ones((8, 4, 3, 3), np.float32), "weight")
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("QuantizeLinear", ["weight", "scale", "zero"], ["wq"]),
        helper.make_node("DequantizeLinear", ["wq", "scale", "zero"], ["wd"]),
        helper.make_node("Conv", ["xd", "wd"], ["y"], pads=[1, 1, 1, 1]),
    ]
    path = model(tmp_path / "int8.onnx", *nodes, shape=(1, 4, 16, 16), out=(1, 8, 16, 16), extra=(zero, weight))
    assert engine_from_onnx(path, "int8", BuildOptions(compute_capabilities=("SM75", "SM86", "SM89", "SM120")), trt=rtx)


def test_rtx__no_gpu_and_no_target(relu: Path, rtx: TensorRT) -> None:
    from runtime.tensorrt.device import find_device

    if find_device() is not None:
        pytest.skip("there is a GPU here")
    with pytest.raises(BackendError, match=r"no NVIDIA GPU here to build for.*compute_capabilities"):
        engine_from_onnx(relu, "fp32", BuildOptions(), trt=rtx)


def test_rtx__unknown_target_lists_the_known(relu: Path, rtx: TensorRT) -> None:
    with pytest.raises(BackendError, match="cannot build for SM87; it can for SM75, SM80"):
        engine_from_onnx(relu, "fp32", BuildOptions(compute_capabilities=("SM87",)), trt=rtx)


def transpose(path: Path) -> Path:
    return model(path, helper.make_node("Transpose", ["x"], ["y"], perm=[0, 3, 1, 2], name="turn"), kind=TensorProto.UINT8)


def zero_point(path: Path) -> Path:
    quantize = helper.make_node("QuantizeLinear", ["x", "scale", "three"], ["q"], name="q1")
    return model(path, quantize, helper.make_node("DequantizeLinear", ["q", "scale", "three"], ["y"], name="dq1"))


def unknown_operator(path: Path) -> Path:
    return model(path, helper.make_node("Imagined", ["x"], ["y"], name="dream"))


def open_shape(path: Path) -> Path:
    return model(path, helper.make_node("Relu", ["x"], ["y"]), shape=("n", 3))


def no_onnx(path: Path) -> Path:
    path.write_bytes(b"junk")
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (transpose, "Transpose node 'turn': .*UInt8"),
        (zero_point, "QuantizeLinear node 'q1': .*Non-zero zero point"),
        (unknown_operator, "Imagined node 'dream'"),
        (open_shape, "leaves the shape of 'x' open"),
        (no_onnx, "is no ONNX file"),
        (lambda path: path, "cannot be read"),
    ],
)
def test_rtx__bad_files_are_told_in_a_sentence(
    tmp_path: Path, rtx: TensorRT, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        engine_from_onnx(make(tmp_path / "bad.onnx"), "fp32", SM86, trt=rtx)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, ValueError])
def test_rtx__what_the_progress_raises_ends_the_build(bundle: Bundle, rtx: TensorRT, raised: type[BaseException]) -> None:
    """An exception that crossed TensorRT's own frames would end the process."""

    def progress(_: str, share: float) -> None:
        if share > 0.1:
            raise raised

    with pytest.raises(raised):
        engine_from_onnx(bundle.model_path("fp32"), "fp32", SM86, trt=rtx, progress=progress)


def test_rtx__a_second_failure_is_told_as_well_as_the_first(bundle: Bundle, relu: Path, rtx: TensorRT) -> None:
    """TensorRT keeps the first logger of a process; errors must not go to one that nobody reads."""
    for _ in range(2):
        with pytest.raises(BackendError, match="attn/MatMul"):
            engine_from_onnx(bundle.model_path("fp32"), "fp32", BuildOptions(compute_capabilities=("SM75",)), trt=rtx)
    assert engine_from_onnx(relu, "fp32", SM86, trt=rtx)
