"""Copy-paste localization: pieces, boxes, heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edge.errors import TrainingError
from edge.methods import build_method
from edge.methods.cutpaste import pasted
from edge.trunk import Trunk
from edge.yolo import build_detector, part_keys
from tests.edge.small_methods import SETTINGS, batch_of, trunk


def test_cutpaste__pieces_lie_in_their_boxes_and_come_from_other_images() -> None:
    torch.manual_seed(0)
    grey = torch.linspace(0, 0.3, 6)[:, None, None, None].expand(6, 3, 96, 128)
    donors = torch.linspace(0.5, 1, 6)[:, None, None, None].expand(6, 3, 96, 128)
    made, rows, boxes = pasted(grey, donors)
    assert set(rows.tolist()) == {0, 1, 2, 3, 4, 5}
    assert len(boxes) > 6
    inside = torch.zeros(6, 96, 128, dtype=torch.bool)
    for row, (cx, cy, width, height) in zip(rows.int().tolist(), boxes.tolist(), strict=True):
        left, top = round(128 * (cx - width / 2)), round(96 * (cy - height / 2))
        window = slice(top, round(96 * (cy + height / 2))), slice(left, round(128 * (cx + width / 2)))
        assert not inside[row][window].any(), "pieces do not cover each other"
        inside[row][window] = True
        piece = made[row, 0][window]
        assert (piece != grey[row, 0][window]).float().mean() > 0.7, "all of the box, or the ellipse in it"
        assert not torch.isclose(piece, donors[row, 0, 0, 0]).any(), "not from the image itself"
    assert torch.equal(made[:, 0][~inside], grey[:, 0][~inside])
    assert len(pasted(grey, grey[:1].expand_as(grey))[1]) < len(rows), "what nobody could see is left out"


@pytest.mark.parametrize("model", ["yolov5n", "yolov10n", "yolo26n", "yolo11n-resnet18"])
def test_cutpaste__other_heads(model: str) -> None:
    """Two heads that share maps (v10, 26), another backbone: what is kept learns, the classes are not part of it."""
    torch.manual_seed(0)
    detector = build_detector(model, ["x"], 0)
    method: Any = build_method("cutpaste", Trunk(detector, model, "localizer"), SETTINGS).train()
    method(*batch_of(method, 0)).backward()
    named = dict(detector.named_parameters())
    kept = part_keys(model, named, "localizer")
    head = f"model.{len(detector.model) - 1}."
    own = [key for key in kept if key.startswith(head)]
    assert own
    assert not any(".cv3." in key or "one2one_cv3" in key for key in own)
    assert any(named[key].grad is not None and bool(named[key].grad.abs().sum() > 0) for key in own), "box branches learn"
    first = next(iter(named.values())).grad
    assert first is not None
    assert first.abs().sum() > 0


def test_cutpaste__needs_the_head() -> None:
    with pytest.raises(TrainingError, match="--part neck or --part localizer"):
        build_method("cutpaste", trunk("backbone"), SETTINGS)
