from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edge.activation_checkpointing import checkpoint_activations
from edge.errors import TrainingError
from edge.finetune import finetune
from edge.pretrain import pretrain
from edge.yolo import build_detector, layers_of
from tests.conftest import few_labels
from tests.edge.small_runs import finetune_request, pretrain_request, same_weights


def kept_bytes(detector: torch.nn.Module, images: torch.Tensor) -> int:
    """What a forward pass keeps for the way back, weights not counted."""
    weights = {parameter.data_ptr() for parameter in detector.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = detector(images)
    del found
    return sum(kept.values())


@pytest.mark.parametrize("model", ["yolo11n", "yolo11n-resnet18"])
def test_checkpoint_activations__keeps_less_and_the_same_running_statistics(model: str) -> None:
    images = torch.rand(2, 3, 64, 64)
    plain, lean = (build_detector(model, ["object"], 0).train() for _ in range(2))
    checkpoint_activations(layers_of(lean, model))
    assert kept_bytes(lean, images) < 0.6 * kept_bytes(plain, images)
    for detector in (plain, lean):
        sum(found.float().square().mean() for found in detector(images)["boxes"]).backward()
    assert lean.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, lean.state_dict()[name]) for name, value in plain.state_dict().items())
    for (name, parameter), other in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name)


@pytest.mark.parametrize(
    ("method", "part"), [("simclr", "backbone"), ("dense", "neck"), ("moco", "neck"), ("cutpaste", "localizer")]
)
def test_pretrain__with_activation_checkpointing_has_the_same_weights(
    pool_dir: Path, tmp_path: Path, method: str, part: str
) -> None:
    plain, lean = (
        pretrain(pretrain_request(pool_dir, tmp_path / str(on), method=method, part=part, activation_checkpointing=on))
        for on in (False, True)
    )
    assert same_weights(plain, lean)


def test_finetune__with_activation_checkpointing_has_the_same_weights(tmp_path: Path) -> None:
    data = few_labels(tmp_path / "data", held_out=2)
    plain, lean = (
        finetune(finetune_request(data, tmp_path / str(on), freeze=0.5, activation_checkpointing=on)).checkpoint
        for on in (False, True)
    )
    assert same_weights(plain, lean)


@pytest.mark.parametrize("method", ["mae", "hybrid"])
def test_pretrain__methods_that_mask_layers_take_no_activation_checkpointing(
    pool_dir: Path, tmp_path: Path, method: str
) -> None:
    with pytest.raises(TrainingError, match="give --chunk instead"):
        pretrain(pretrain_request(pool_dir, tmp_path / "run", method=method, activation_checkpointing=True))
