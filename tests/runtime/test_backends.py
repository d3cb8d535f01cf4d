from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime.backends import ENGINES, open_backend, open_model
from runtime.bundle import Bundle
from runtime.errors import BackendError


@pytest.mark.parametrize("engine", list(ENGINES))
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_infer__shapes_ranges_and_order(bundle: Bundle, engine: str, precision: str) -> None:
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
    assert (backend.engine, backend.precision) == (engine, precision)
    backend.close()


def test_infer__engines_agree_on_fp32(bundle: Bundle) -> None:
    images = np.random.default_rng(1).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    results = [open_backend(bundle, engine, "fp32").infer(images) for engine in ENGINES]
    np.testing.assert_allclose(results[0].scores, results[1].scores, atol=1e-4)
    np.testing.assert_allclose(results[0].embedding, results[1].embedding, atol=1e-4)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_open_model__damaged_file(tmp_path: Path, engine: str) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(BackendError, match="convert the model again"):
        open_model(engine, tmp_path / "bad.onnx", "fp32")


def test_open_model__unknown_engine(bundle: Bundle) -> None:
    with pytest.raises(BackendError, match="the engines are onnxruntime, openvino"):
        open_model("tensorflow", bundle.model_path("fp32"), "fp32")
