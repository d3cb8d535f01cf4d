"""Each method on real layers: what its loss is, that it can be learnt, and what it must not see."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters.checkpoint import Checkpoint, save_checkpoint
from edge.errors import TrainingError
from edge.methods import METHODS, Settings, build_method
from edge.methods.dense import centres, drift, same_places
from edge.methods.jigsaw import SIDE, distant_shuffles, shuffled_tiles
from edge.methods.moco import MoCo
from edge.methods.simclr import TEMPERATURE, SimCLR
from edge.trunk import Trunk
from edge.yolo import Part, build_detector
from tests.edge.small_methods import SETTINGS, batch_of, trunk


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another architecture's detector, with fresh weights."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    save_checkpoint(path, Checkpoint("yolov8n", ("x",), build_detector("yolov8n", ["x"], 1).state_dict(), 96))
    return path


@pytest.mark.parametrize("name", list(METHODS))
def test_method__is_learnt_and_reaches_the_trunk(name: str, teacher: Path) -> None:
    torch.manual_seed(0)
    own = trunk("neck")
    settings = Settings(imgsz=96, batch=8, images=64, steps=1000 if name == "hybrid" else 20, teacher=teacher)
    method: Any = build_method(name, own, settings).train()
    steps, lr = (35, 1e-3) if name == "cutpaste" else (12, 3e-4)  # a detector's loss rises before it falls: boxes join it
    optimizer = torch.optim.AdamW((p for p in method.parameters() if p.requires_grad), lr)
    views = batch_of(method, 0)
    losses = []
    for step in range(steps):  # the same views each time: a loss that cannot even fit them is broken
        torch.manual_seed(0)
        loss = method(*views)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in own.parameters()]
        optimizer.step()
        method.after_step(step)
        losses.append(float(loss.detach()))
    if name != "moco":  # its loss begins with a queue of random keys that nothing looks like
        assert losses[-1] < 0.95 * losses[0], losses
    assert all(np.isfinite(losses))
    share = {"mae": 0.3, "hybrid": 0.3, "cutpaste": 0.9}.get(name, 0.95)  # P5's boxes have no gradient where no piece is large
    assert np.mean(reached) > share, "gradients reach the trunk's layers"


@pytest.mark.parametrize("name", ["dense", "simclr", "mae"])
def test_method__around_a_resnet(name: str) -> None:
    torch.manual_seed(0)
    own = trunk("neck" if name != "simclr" else "backbone", "yolo11n-resnet18")
    method: Any = build_method(name, own, SETTINGS).train()
    method(*batch_of(method, 0)).backward()
    stages = list(own.layers[0].m)  # type: ignore[arg-type]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in stages[7].parameters()), "layer4"
    assert stages[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("model", "part", "channels", "strides"),
    [
        ("yolo11n", "backbone", [256], [32]), ("yolo11n", "neck", [64, 128, 256], [8, 16, 32]),
        ("yolov8n", "neck", [64, 128, 256], [8, 16, 32]), ("yolov5n", "neck", [64, 128, 256], [8, 16, 32]),
        ("yolov10n", "neck", [64, 128, 256], [8, 16, 32]), ("yolo26n", "neck", [64, 128, 256], [8, 16, 32]),
        ("yolo12n", "neck", [64, 128, 256], [8, 16, 32]), ("yolov9t", "neck", [64, 96, 128], [8, 16, 32]),
        ("yolo11n-resnet18", "backbone", [512], [32]), ("yolo11n-resnet18", "neck", [64, 128, 256], [8, 16, 32]),
    ],
)  # fmt: skip
def test_trunk__maps_are_those_that_the_head_looks_at(model: str, part: Part, channels: list[int], strides: list[int]) -> None:
    detector = build_detector(model, ["x"], 0).eval()
    found = Trunk(detector, model, part).eval()
    assert (found.channels, found.strides) == (channels, strides)
    if part == "neck":
        seen: list[torch.Tensor] = []
        detector.model[-1].register_forward_pre_hook(lambda _, inputs: seen.extend(each.clone() for each in inputs[0]))
        image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            detector(image)
            for ours, theirs in zip(found(image), seen, strict=True):
                torch.testing.assert_close(ours, theirs)


def test_dense__an_anchor_holds_the_maps_while_they_learn() -> None:
    """The same steps with and without: the anchored maps stay nearer to what the start says of the pictures."""
    far = {}
    for weight in (0.0, 100.0):
        torch.manual_seed(0)
        own = trunk().train()
        method: Any = build_method("dense", own, SETTINGS)
        views = batch_of(method, 0)
        norms = [module for module in own.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for momentum in (1.0, 0.03):  # statistics of these pictures, as a trained detector has of its own
            for norm in norms:
                norm.momentum = momentum
            own(torch.cat(views[:2]))
        start = copy.deepcopy(own).eval()
        method = build_method("dense", own, dataclasses.replace(SETTINGS, anchor=weight)).train()
        assert not any("_start" in key for key in method.state_dict())
        optimizer = torch.optim.AdamW(method.parameters(), 1e-3)
        for _ in range(8):
            torch.manual_seed(0)
            optimizer.zero_grad()
            method(*views).backward()
            optimizer.step()
        with torch.no_grad():
            far[weight] = float(drift(own(views[0]), start(views[0])))
            assert float(drift(start(views[0]), start(views[0]))) == 0
    assert far[100.0] < 0.6 * far[0.0]


def test_simclr__the_loss_is_the_papers() -> None:
    method = SimCLR(trunk("backbone"), SETTINGS).eval()
    views = batch_of(method, 0, 4)
    with torch.no_grad():
        first, second = (torch.nn.functional.normalize(z, dim=1) for z in method.embed(*views))
        z = torch.cat([first, second])
        losses = []
        for i in range(8):  # equation 1, term by term
            positive = torch.exp(z[i] @ z[(i + 4) % 8] / TEMPERATURE)
            everyone = sum(torch.exp(z[i] @ z[k] / TEMPERATURE) for k in range(8) if k != i)
            losses.append(-torch.log(positive / everyone))
        torch.testing.assert_close(method(*views), torch.stack(losses).mean())


def test_moco__keys_follow_slowly_and_wait_in_the_queue() -> None:
    torch.manual_seed(0)
    method = MoCo(trunk("backbone"), SETTINGS).train()
    before = [p.clone() for p in method.keys_trunk.parameters()]
    with torch.no_grad():
        for parameter in method.trunk.parameters():
            parameter.add_(1.0)
    method.after_step(0)
    moved = [float((after - old).mean()) for after, old in zip(method.keys_trunk.parameters(), before, strict=True)]
    assert moved == pytest.approx([0.01] * len(moved), rel=1e-3)
    assert not any(p.requires_grad for p in method.keys_trunk.parameters())
    method(*batch_of(method, 0))
    bank = method.criterion.memory_bank.bank
    assert bank.shape == (48, 128), "both views of 0.4 of 64 images, in whole batches"


def test_moco__no_key_of_a_step_repels_its_own_query(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    method = MoCo(trunk("backbone"), SETTINGS).train()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    inner = method.criterion.memory_bank.forward

    def watched(keys: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        found = inner(keys, *arguments, **options)
        seen.append((torch.nn.functional.normalize(keys, dim=1), found[1]))
        return found

    monkeypatch.setattr(method.criterion.memory_bank, "forward", watched)
    for step in range(3):
        method(*batch_of(method, step))
    assert len(seen) == 3
    for keys, bank in seen:
        assert float((keys @ bank).max()) < 0.9999


def test_same_places__partners_show_the_same_place() -> None:
    torch.manual_seed(0)
    first = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 0.3, 0.3]])
    second = torch.tensor([[0.7, 0.1, 0.2, 0.8], [0.5, 0.5, 1.0, 1.0]])  # flipped left to right; far from the first
    image, a, b = same_places(first, second, (7, 7), 49)
    assert set(image.tolist()) == {0}, "crops that do not overlap have no partners"
    assert len(image) > 15
    here, there = centres(first, (7, 7)), centres(second, (7, 7))
    apart = (here[0, a] - there[0, b]).abs()
    assert float(apart[:, 0].max()) <= 0.5 / 7
    assert float(apart[:, 1].max()) <= 0.71 * 0.7 / 7


def test_jigsaw__tiles_lie_where_the_order_says() -> None:
    torch.manual_seed(0)
    images = torch.zeros(1, 3, 96, 96)
    for tile in range(9):
        row, column = divmod(tile, SIDE)
        images[:, :, 32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = tile
    order = torch.tensor([[3, 1, 4, 0, 5, 8, 2, 6, 7]])
    shuffled = shuffled_tiles(images, order)
    assert shuffled.shape == (1, 9, 3, 32, 32)
    assert shuffled.amin((2, 3, 4)).tolist() == shuffled.amax((2, 3, 4)).tolist() == order.tolist()


def test_jigsaw__shuffles_differ_much() -> None:
    shuffles = distant_shuffles(64)
    assert sorted(shuffles[5].tolist()) == list(range(9))
    distance = (shuffles[:, None] != shuffles[None]).sum(-1) + 9 * torch.eye(64, dtype=torch.long)
    assert int(distance.min()) >= 6


def test_hybrid__phases_go_with_the_step_also_after_a_resume() -> None:
    torch.manual_seed(0)
    method: Any = build_method("hybrid", trunk(), SETTINGS).eval()
    views = batch_of(method, 0)
    torch.manual_seed(1)
    painting = float(method(*views).detach())
    method.after_step(7)  # of 20, 0.4 of them: the eighth was the last
    torch.manual_seed(1)
    agreeing = float(method(*views).detach())
    assert painting < 5 < agreeing
    again: Any = build_method("hybrid", trunk(), SETTINGS)
    again.load_state_dict(method.state_dict())
    assert int(again.step) == 8


def test_distill__needs_a_teacher_and_the_neck(teacher: Path) -> None:
    with pytest.raises(TrainingError, match="--teacher"):
        build_method("distill", trunk(), SETTINGS)
    with pytest.raises(TrainingError, match="train it with its neck"):
        build_method("distill", trunk("backbone"), Settings(96, 8, 64, 20, teacher=teacher))


def test_distill__the_teacher_is_neither_trained_nor_kept(teacher: Path) -> None:
    method: Any = build_method("distill", trunk(), Settings(96, 8, 64, 20, teacher=teacher)).train()
    theirs = method._teacher[0]
    assert not theirs.training
    assert not any(p.requires_grad for p in theirs.parameters())
    assert not any("teacher" in key for key in method.state_dict())


def test_distill__a_student_like_its_teacher_has_no_relations_to_learn() -> None:
    from edge.methods.distill import relational_divergence

    maps = torch.rand(2, 16, 8, 8)
    assert float(relational_divergence(maps, maps)) == pytest.approx(0, abs=1e-5)
    assert float(relational_divergence(3 * maps, maps)) == pytest.approx(0, abs=1e-5), "of any scale"
    assert float(relational_divergence(torch.rand(2, 8, 8, 8), maps)) > 0.01


def test_distill__channels_count_alike_whatever_their_mean_and_scale() -> None:
    from edge.methods.distill import channel_distance

    generator = torch.Generator().manual_seed(0)
    maps, other = torch.rand(2, 2, 16, 8, 8, generator=generator)
    strong = maps * torch.linspace(1, 100, 16).view(1, -1, 1, 1) + 50
    assert float(channel_distance(strong, maps)) == pytest.approx(0, abs=1e-4)
    assert float(channel_distance(-maps, maps)) == pytest.approx(2, abs=0.05)
    assert float(channel_distance(other, maps)) == pytest.approx(1, abs=0.1)
    same = strong.mean((0, 2, 3), keepdim=True).expand_as(strong)
    assert float(torch.nn.functional.cosine_similarity(same, strong, dim=1).min()) > 0.95
    assert float(channel_distance(same, strong)) > 0.45, "the mean alone is no knowledge"
    flat = (1 + 1e-6 * maps).requires_grad_()
    channel_distance(flat, maps).backward()  # type: ignore[no-untyped-call]
    assert flat.grad is not None
    assert float(flat.grad.norm()) < 10, "a channel that is nearly the same everywhere does not take over a step"


def test_build_method__an_unknown_one() -> None:
    with pytest.raises(TrainingError, match="the methods are dense, simclr"):
        build_method("dino", trunk(), SETTINGS)
