from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runtime.backends import ENGINES, model_file, open_backend, open_installed, open_model
from runtime.backends.inputs import HostInputs
from runtime.bundle import Bundle
from runtime.device import GPU_ENGINES, engines_here
from runtime.errors import BackendError, BundleError
from runtime.manifest import is_for
from runtime.tensorrt.device import find_device
from tests.conftest import ROOT

HERE = list(engines_here())  # those for a GPU too, where there is one
NO_GPU = pytest.mark.skipif(find_device() is not None, reason="there is an NVIDIA GPU here")


@pytest.mark.parametrize("engine", HERE)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_infer__shapes_ranges_and_order(bundle: Bundle, engine: str, precision: str) -> None:
    if precision == "int8" and not any(
        row.precision == "int8" and is_for(row.form, engine) for row in bundle.manifest.variants
    ):
        pytest.skip("this bundle has no INT8 file for that engine")
    backend = open_backend(bundle, engine, precision, threads=1)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    outputs = backend.infer(images)
    spec = bundle.manifest.outputs
    assert outputs.boxes.shape == (1, spec.top_k, 4)
    assert outputs.scores.shape == outputs.classes.shape == (1, spec.top_k)
    assert (np.diff(outputs.scores[0]) <= 0).all()
    assert 0 <= outputs.scores.min() <= outputs.scores.max() <= 1
    assert set(np.unique(outputs.classes)) <= set(range(len(bundle.manifest.classes)))
    np.testing.assert_allclose(np.linalg.norm(outputs.embedding, axis=1), 1, atol=1e-4)
    assert outputs.embedding.shape == (1, spec.embedding_dim)
    assert (backend.engine, backend.precision, backend.batch) == (engine, precision, spec.batch)
    backend.close()


@pytest.mark.parametrize("engine", [engine for engine in HERE if engine != "onnxruntime"])
def test_infer__engines_agree_on_fp32(bundle: Bundle, engine: str) -> None:
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    expected, backend = open_backend(bundle, "onnxruntime", "fp32").infer(images), open_backend(bundle, engine, "fp32")
    found = backend.infer(images)
    tolerance = 1e-2 if engine in GPU_ENGINES else 1e-4  # matrix products in TF32
    np.testing.assert_allclose(found.scores, expected.scores, atol=tolerance)
    np.testing.assert_allclose(found.embedding, expected.embedding, atol=tolerance)


@pytest.mark.parametrize("engine", HERE)
def test_run__what_was_put_is_what_is_inferred(bundle: Bundle, engine: str) -> None:
    backend = open_backend(bundle, engine, "fp32", threads=1)
    preprocess, rng = bundle.preprocess, np.random.default_rng(2)
    buffers = [backend.inputs(preprocess) for _ in range(2)]
    for turn in range(6):  # a GPU engine captures a graph for each buffer on the way
        scene = rng.integers(0, 256, (100, 180, 3), dtype=np.uint8)
        view = scene[10:90, 20:150, :]  # as a region of interest: not contiguous
        canvas = preprocess.buffer(backend.batch)
        expected = preprocess.letterbox(view, canvas[0])
        inputs = buffers[turn % 2]
        assert inputs.put(0, view) == expected
        scene[:] = 0  # the frame is free again
        run = backend.run(inputs)
        scores, embedding = run.scores.copy(), run.embedding.copy()
        inferred = backend.infer(canvas)
        np.testing.assert_allclose(scores, inferred.scores, atol=1e-2)
        np.testing.assert_allclose(embedding, inferred.embedding, atol=1e-2)
    backend.close()


@pytest.mark.parametrize("engine", HERE)
def test_run__inputs_of_another_backend(bundle: Bundle, engine: str) -> None:
    class Others:
        batch = 1

        def put(self, row: int, image: object) -> None: ...

    backend = open_backend(bundle, engine, "fp32", threads=1)
    with pytest.raises(TypeError, match="expected inputs that this backend made, but got Others"):
        backend.run(Others())  # type: ignore[arg-type]
    backend.close()


def test_host_inputs__rows_are_apart(bundle: Bundle) -> None:
    preprocess = bundle.preprocess
    inputs = HostInputs(preprocess.buffer(3), preprocess)
    assert inputs.batch == 3
    inputs.put(1, np.zeros((64, 64, 3), np.uint8))
    assert [int(image.max()) for image in inputs.images] == [preprocess.pad_value, 0, preprocess.pad_value]


@NO_GPU
@pytest.mark.parametrize("engine", GPU_ENGINES)
def test_open_model__an_engine_for_a_gpu_without_one(bundle: Bundle, engine: str) -> None:
    with pytest.raises(BackendError, match=rf"^{engine} cannot run .*: there is no NVIDIA GPU here"):
        open_model(engine, bundle.model_path("fp32"), "fp32")
    with pytest.raises(BackendError, match=rf"^{engine} cannot run .*: there is no NVIDIA GPU here"):
        open_backend(bundle, engine, "fp32")


@NO_GPU
def test_open_installed__engines_for_a_gpu_are_no_candidates_without_one(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeloop[tensorrt-rtx]'")  # or there is nothing to leave out
    backends = open_installed(bundle, threads=1)
    assert {engine for _, engine in backends} == set(HERE) == {"onnxruntime", "openvino"}
    assert caplog.records == []


def test_model_file__by_what_the_engine_takes(bundle: Bundle) -> None:
    assert model_file(bundle, "onnxruntime-cuda", "fp32") == bundle.model_path("fp32")
    with pytest.raises(BundleError, match="no int8 model for any"):
        model_file(bundle, "onnxruntime-cuda", "int8")


@pytest.mark.parametrize("engine", list(ENGINES))
def test_open_model__damaged_file(tmp_path: Path, engine: str) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match="convert the model again"):
        open_model(engine, tmp_path / "bad.onnx", "fp32")


def test_open_model__unknown_engine(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="the engines are onnxruntime, openvino, onnxruntime-cuda, tensorrt, tensorrt-rtx"):
        open_model("tensorflow", bundle.model_path("fp32"), "fp32")


@pytest.mark.parametrize("engine", HERE)
def test_close__signals_are_heard_after_a_swap(bundle: Bundle, engine: str) -> None:
    """Each of OpenVINO's cores leaves the thread another signal stack: one that was freed ends the process at a signal."""
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from runtime.backends import open_backend\n"
        "from runtime.bundle import Bundle\n"
        f"bundle = Bundle.open(Path({str(bundle.path)!r}))\n"
        "signal.signal(signal.SIGHUP, lambda *_: print('heard'))\n"
        f"first, second = (open_backend(bundle, {engine!r}, 'fp32', threads=1) for _ in range(2))\n"
        "first.close()\ndel first\nsecond.close()\ndel second\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "heard"
