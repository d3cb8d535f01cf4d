from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from calibration.errors import DataError
from calibration.labels import Dataset, load_dataset
from converters.errors import CheckpointError
from edge.evaluation import evaluate_model, model_accuracy
from edge.evaluation_page import evaluation_page
from runtime.bundle import Bundle
from tests.conftest import few_labels


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(few_labels(tmp_path_factory.mktemp("data"), held_out=6))


def test_evaluate_model__bundle_and_checkpoint_agree(bundle: Bundle, checkpoint: Path, dataset: Dataset) -> None:
    """The bundle was converted from the checkpoint."""
    of_bundle = evaluate_model(bundle.path, dataset, "onnxruntime", "fp32")
    of_checkpoint = evaluate_model(checkpoint, dataset)
    for (_, one), (_, other) in zip(of_bundle.pairs, of_checkpoint.pairs, strict=True):
        assert len(one) == len(other) > 0
        np.testing.assert_allclose(np.sort(one.confidence), np.sort(other.confidence), atol=1e-4)
        np.testing.assert_allclose(np.sort(one.xyxy, axis=0), np.sort(other.xyxy, axis=0), atol=0.05)
    assert model_accuracy(checkpoint, dataset) == of_checkpoint.accuracy


def test_evaluation_page__shows_every_image_with_mistakes(checkpoint: Path, dataset: Dataset) -> None:
    found = evaluate_model(checkpoint, dataset)
    shown = evaluation_page(found, dataset.val, dataset.names, "<model>")
    assert "&lt;model&gt;" in shown
    assert "<script" not in shown
    assert shown.count("<img") == 2 * len(found.breakdown.worst(8)) > 0
    for name in dataset.names:
        assert name in shown


def test_evaluate_model__other_classes(checkpoint: Path, dataset: Dataset) -> None:
    with pytest.raises(DataError, match="name a data set of the same classes, or fine-tune on this one"):
        evaluate_model(checkpoint, Dataset(("other",), dataset.train, dataset.val))
    with pytest.raises(CheckpointError, match="no such checkpoint: nowhere"):
        evaluate_model(Path("nowhere.pt"), dataset)
    with pytest.raises(DataError, match="leave out --engine and --precision"):
        evaluate_model(checkpoint, dataset, precision="int8")
