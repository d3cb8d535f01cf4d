"""Masked modelling: what is hidden stays hidden."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from edge.errors import TrainingError
from edge.methods.mae import MaskedModelling, normalised, random_mask
from edge.trunk import pooled
from tests.edge.small_methods import SETTINGS, trunk


@pytest.mark.parametrize("model", ["yolo11n", "yolo11n-resnet18"])
def test_mae__what_is_hidden_does_not_reach_what_is_visible(model: str) -> None:
    torch.manual_seed(0)
    method = MaskedModelling(trunk("backbone", model), SETTINGS).train()
    images = torch.rand(2, 3, 96, 96)
    visible = random_mask(2, 3, 3, images.device)
    assert visible.flatten(1).sum(1).tolist() == [4, 4]
    grown = visible.repeat_interleave(32, 2).repeat_interleave(32, 3)
    other = torch.where(grown, images, torch.rand(2, 3, 96, 96))
    for a, b in zip(method._maps(images, visible), method._maps(other, visible), strict=True):
        torch.testing.assert_close(a, b)
        hidden = ~visible.repeat_interleave(a.shape[2] // 3, 2).repeat_interleave(a.shape[3] // 3, 3)
        assert float((a * hidden).detach().abs().max()) == 0


def test_mae__pooling_smears_nothing_over_hidden_squares() -> None:
    torch.manual_seed(0)
    method = MaskedModelling(trunk("backbone", "yolo11n-resnet18"), SETTINGS).train()
    (pool,) = (module for module in method.modules() if isinstance(module, torch.nn.MaxPool2d))
    seen: list[torch.Tensor] = []
    pool.register_forward_hook(lambda _, __, found: seen.append(found.detach()))
    visible = random_mask(2, 3, 3, torch.device("cpu"))
    method._maps(torch.rand(2, 3, 96, 96), visible)
    hidden = ~visible.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert float(seen[0].abs().max()) > 0 == float((seen[0] * hidden).abs().max())


def test_mae__a_picture_of_one_square_has_nothing_to_hide() -> None:
    with pytest.raises(TrainingError, match="has no two squares, one to hide; take --imgsz 64"):
        MaskedModelling(trunk(), replace(SETTINGS, imgsz=32))


def test_mae__layers_are_themselves_again_afterwards() -> None:
    own = trunk().eval()
    image = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        before = pooled(own(image))
        method = MaskedModelling(own, SETTINGS).eval()
        method(image)
        torch.testing.assert_close(pooled(own(image)), before)


def test_mae__squares_are_normalised() -> None:
    flat = normalised(torch.rand(2, 3, 64, 64)).unfold(2, 32, 32).unfold(3, 32, 32)
    torch.testing.assert_close(flat.mean((1, -1, -2)), torch.zeros(2, 2, 2), atol=1e-4, rtol=0)
    torch.testing.assert_close(flat.std((1, -1, -2)), torch.ones(2, 2, 2), atol=0.01, rtol=0)
    red, blue = torch.rand(2, 3, 32, 32) * 0.1 + torch.eye(3)[[0, 2], :, None, None] * 0.9
    assert normalised(red[None])[0, 0].mean() > 1 > -0.5 > normalised(blue[None])[0, 0].mean(), "colours are painted"
