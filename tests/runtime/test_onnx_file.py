from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from runtime.bundle import Bundle
from runtime.errors import BackendError
from runtime.onnx_file import refuse_external_data


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_refuse_external_data__lets_a_whole_file_pass(bundle: Bundle, precision: str) -> None:
    refuse_external_data(bundle.model_path(precision))


def test_refuse_external_data__finds_one_tensor_among_many(bundle: Bundle, tmp_path: Path) -> None:
    model = onnx.load(bundle.model_path("fp32"))
    tensor = model.graph.initializer[-1]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")
    tensor.ClearField("raw_data")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match="external data"):
        refuse_external_data(tmp_path / "m.onnx")


def hidden_in_a_branch(tensor: onnx.TensorProto) -> onnx.ModelProto:
    inner = helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], "inner", [], [])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return helper.make_model(helper.make_graph([node], "outer", [], []))


def hidden_in_a_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    function = helper.make_function("local", "f", [], ["y"], [node], [helper.make_opsetid("", 17)])
    return helper.make_model(helper.make_graph([], "outer", [], []), functions=[function])


def hidden_in_a_sparse_tensor(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = helper.make_model(helper.make_graph([], "outer", [], []))
    model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    return model


@pytest.mark.parametrize("hide", [hidden_in_a_branch, hidden_in_a_function, hidden_in_a_sparse_tensor])
def test_refuse_external_data__finds_it_wherever_it_hides(
    tmp_path: Path, hide: Callable[[onnx.TensorProto], onnx.ModelProto]
) -> None:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/hostname")
    (tmp_path / "m.onnx").write_bytes(hide(tensor).SerializeToString())
    with pytest.raises(BackendError, match="external data"):
        refuse_external_data(tmp_path / "m.onnx")


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_refuse_external_data__fuzzed_bytes_give_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.onnx"
    path.write_bytes(data)
    try:
        refuse_external_data(path)
    except BackendError as error:
        assert "fuzz.onnx" in str(error)


def test_refuse_external_data__costs_little(bundle: Bundle) -> None:
    """It reads the file once and copies nothing: slices of one memoryview."""
    size = bundle.model_path("fp32").stat().st_size
    import tracemalloc

    tracemalloc.start()
    refuse_external_data(bundle.model_path("fp32"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * size + 1_000_000
