"""The engines for a GPU, as far as that goes without one; on a machine that has one, test_backends runs them too."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, cast

import pytest

from runtime.backends.onnxruntime_cuda import provider_module
from runtime.backends.tensorrt import TensorRtModel, deserialised, loaded_engine
from runtime.bundle import Bundle
from runtime.cuda.driver import Stream
from runtime.errors import BackendError, DeviceLostError
from runtime.tensorrt.callbacks import process_logger
from runtime.tensorrt.device import find_device
from runtime.tensorrt.engine_cache import EngineCache, EngineRequest, engine_for
from runtime.tensorrt.engine_from_onnx import BuildOptions
from runtime.tensorrt.flavour import Flavour, flavour_of, load_flavour
from tests.runtime.tensorrt.recording import LACKS, Record, recording

NO_GPU = pytest.mark.skipif(find_device() is not None, reason="there is an NVIDIA GPU here")


@pytest.fixture
def rtx() -> Flavour:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeloop[tensorrt-rtx]'")
    return load_flavour("tensorrt-rtx")


@pytest.fixture
def request_sm86(bundle: Bundle) -> EngineRequest:
    return EngineRequest(bundle.model_path("fp32"), "fp32", options=BuildOptions(compute_capabilities=("SM86",)))


@NO_GPU
def test_loaded_engine__a_real_plan_that_does_not_load_is_built_again_and_told(
    rtx: Flavour, request_sm86: EngineRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a driver no plan loads, which is the one way to have a whole and sealed one that does not."""
    cache = EngineCache(tmp_path)
    engine_for(request_sm86, cache, rtx)
    (plan,) = cache.sealed.path.glob("*.plan")
    before = plan.stat().st_mtime_ns
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(BackendError, match=r"does not load its own engine .*update the GPU's driver"),
    ):
        loaded_engine(rtx, request_sm86, cache)
    told = [record.getMessage() for record in caplog.records]
    assert "is built again: " in told[0]
    assert "cudaError 35" in told[0]
    assert "building an engine" in told[1]
    assert plan.stat().st_mtime_ns > before


@NO_GPU
def test_deserialised__bytes_that_are_no_plan(rtx: Flavour) -> None:
    engine, told = deserialised(rtx, b"no plan")
    assert engine is None
    assert told != ""


class Handle:
    """A stream that only has an address."""

    handle = 99


def recorded_model(version: str, kinds: dict[str, str]) -> tuple[TensorRtModel, Record, Flavour]:
    """The calls that the module of that version knows; what TensorRT makes of them is for a machine with a GPU."""
    trt, record = recording(version)
    flavour = flavour_of(trt)
    names = ["images", *kinds]
    record.answers |= {
        "ICudaEngine.num_io_tensors": len(names),
        "ICudaEngine.get_tensor_name": lambda index: names[index],
        "ICudaEngine.get_tensor_shape": lambda name: (2, 64, 64, 3) if name == "images" else (2, 300),
        "ICudaEngine.get_tensor_dtype": lambda name: getattr(tensorrt_types(trt), kinds[name]),
    }
    engine, _ = deserialised(flavour, b"plan")
    assert engine is not None
    return TensorRtModel(flavour, engine, cast(Stream, Handle())), record, flavour


def tensorrt_types(trt: object) -> Any:
    return cast(Any, trt).DataType


@pytest.mark.parametrize("version", [version for version in LACKS if version != "8.6.2.3"])
def test_tensorrt__each_generation_has_what_is_called(version: str) -> None:
    integers = "INT64" if version > "10" else "INT32"
    model, record, _ = recorded_model(version, {"boxes": "FLOAT", "classes": integers})
    assert model.images.shape == (2, 64, 64, 3)
    assert {name: str(tensor.dtype) for name, tensor in model.outputs.items()} == {
        "boxes": "float32",
        "classes": integers.lower(),
    }
    model.launch(1, {"boxes": 2, "classes": 3})
    assert record.of("IExecutionContext.set_tensor_address") == [("images", 1), ("boxes", 2), ("classes", 3)]
    assert record.of("IExecutionContext.execute_async_v3") == [(99,)]


@pytest.mark.parametrize(
    ("told", "kind"),
    [("Cuda Runtime (an illegal memory access was encountered)", DeviceLostError), ("no such profile", BackendError)],
)
def test_tensorrt__a_failed_launch(told: str, kind: type[BackendError]) -> None:
    model, record, flavour = recorded_model("10.3.0.30", {"boxes": "FLOAT"})
    _, logged = process_logger(flavour.trt)

    def failed(_: int) -> bool:
        logged.errors.append(told)
        return False

    record.answers["IExecutionContext.execute_async_v3"] = failed
    with pytest.raises(BackendError, match=re.escape(told)) as caught:
        model.launch(1, {"boxes": 2})
    assert type(caught.value) is kind


def test_tensorrt__an_output_of_another_type() -> None:
    with pytest.raises(BackendError, match="'boxes' of the engine is HALF, not FLOAT, INT32, INT64; convert the model again"):
        recorded_model("10.3.0.30", {"boxes": "HALF"})


def test_provider_module__the_build_for_cpus() -> None:
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("the onnxruntime here has CUDA")
    with pytest.raises(
        BackendError, match=r"has no CUDA provider; install it with: pip uninstall -y onnxruntime .*edgeloop\[gpu\]"
    ):
        provider_module()
