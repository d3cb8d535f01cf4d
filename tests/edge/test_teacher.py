"""Teachers of timm's architectures with fresh weights, saved by the tests and read as a user's file is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from converters.checkpoint import load_checkpoint
from converters.errors import CheckpointError
from edge.errors import TrainingError
from edge.methods import Settings, build_method
from edge.pretrain import pretrain
from edge.teacher import load_teacher, nearest
from edge.timm_models import weights_of
from edge.trunk import Trunk
from edge.yolo import build_detector
from runtime.errors import EdgeloopError
from runtime.sources.simulated import Line
from tests.conftest import ROOT
from tests.edge.small_runs import pretrain_request

SIDE = 96


def model_of(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options).eval()


def saved(state: Mapping[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(dict(state), path)
    return path


def normalised(images: torch.Tensor, model: Any) -> torch.Tensor:
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images - mean) / std


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(model_of("resnet10t").state_dict(), tmp_path_factory.mktemp("resnet") / "resnet10t.safetensors")


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_load_teacher__maps_are_those_of_timm(name: str, tmp_path: Path) -> None:
    path = saved(model_of(name).state_dict(), tmp_path / "w.safetensors")
    teacher: Any = load_teacher(path, name, SIDE)
    torch.manual_seed(1)
    images = torch.rand(2, 3, SIDE, SIDE)
    own = model_of(name, features_only=True)
    with torch.no_grad():
        found = teacher(images)
        wanted = [
            each
            for each, stride in zip(own(normalised(images, own)), own.feature_info.reduction(), strict=True)
            if stride in (8, 16, 32)
        ]
    assert [tuple(each.shape[2:]) for each in found] == [(12, 12), (6, 6), (3, 3)]
    assert teacher.channels == [each.shape[1] for each in found]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_load_teacher__a_plain_vit_gives_its_last_tokens_at_all_strides(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    own = model_of(name)
    teacher: Any = load_teacher(saved(own.state_dict(), tmp_path / "w.pth"), f"{name}.augreg_in21k_ft_in1k", SIDE)
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        found = teacher(images)
        own.set_input_size(img_size=(SIDE, SIDE))
        tokens = own.forward_features((images - 0.5) / 0.5)  # that tag's statistics
    wanted = tokens[:, 1:].transpose(1, 2).reshape(2, 192, 6, 6)
    torch.testing.assert_close(found[1], wanted)
    assert [tuple(each.shape) for each in found] == [(2, 192, 12, 12), (2, 192, 6, 6), (2, 192, 3, 3)]
    for each in found:
        torch.testing.assert_close(each.mean((2, 3)), wanted.mean((2, 3)), atol=0.15, rtol=0)


def test_load_teacher__a_file_as_dinov2_published_it(tmp_path: Path) -> None:
    name = "vit_small_patch14_dinov2.lvd142m"
    state = {**model_of(name).state_dict(), "mask_token": torch.zeros(1, 384)}
    teacher: Any = load_teacher(saved(state, tmp_path / "dinov2_vits14_pretrain.pth"), name, SIDE)
    with torch.no_grad():
        found = teacher(torch.rand(1, 3, SIDE, SIDE))
    assert [tuple(each.shape) for each in found] == [(1, 384, 12, 12), (1, 384, 6, 6), (1, 384, 3, 3)]
    weight = state["blocks.11.attn.qkv.weight"]
    torch.testing.assert_close(teacher.model.blocks[11].attn.qkv.weight, weight)


def test_load_teacher__heads_and_wrappers_do_not_matter(resnet: Path, tmp_path: Path) -> None:
    own = model_of("resnet10t", num_classes=6)
    state = {f"module.{key}": value for key, value in own.state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "other.pth")
    headless = saved(model_of("resnet10t", num_classes=0).state_dict(), tmp_path / "headless.safetensors")
    for path in (resnet, tmp_path / "other.pth", headless):
        teacher = load_teacher(path, "resnet10t", 64)
        assert not teacher.training
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        with torch.no_grad():
            assert len(teacher(torch.rand(1, 3, 64, 64))) == 3


class Mark:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_load_teacher__mistakes_are_told(resnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = model_of("resnet10t").state_dict()
    broken = {**state, "conv1.0.weight": torch.full_like(state["conv1.0.weight"], float("nan"))}
    saved(broken, tmp_path / "nan.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(resnet.read_bytes()[:5000])
    (tmp_path / "words.pth").write_text("no weights")
    torch.save({"a": Mark()}, tmp_path / "code.pth")
    torch.save({"epoch": 1}, tmp_path / "numbers.pth")
    cases: list[tuple[Path | str, str, type[EdgeloopError], str]] = [
        (resnet, "resnet_50", TrainingError, r"timm has no model 'resnet_50'; similar ones are .*resnet50"),
        (resnet, "dinov2_vits14", TrainingError, r"similar ones are vit_.*dinov2"),
        (resnet, "hf-hub:timm/resnet10t", TrainingError, "timm has no model"),
        (resnet, "resnet10t.no_tag", TrainingError, r"similar ones are resnet10t"),
        (resnet, "resnet14t", CheckpointError, r"are not resnet14t's \(\d+ of \d+ tensors are missing or of another shape"),
        (resnet, "vit_tiny_patch16_224", CheckpointError, r"are not vit_tiny_patch16_224's \(.*--teacher-model"),
        (resnet, "", CheckpointError, "of a timm model, give its name with --teacher-model"),
        ("nan.safetensors", "resnet10t", CheckpointError, r"NaN or infinity in conv1\.0\.weight"),
        ("cut.safetensors", "resnet10t", CheckpointError, "cannot be read as safetensors"),
        ("none.safetensors", "resnet10t", CheckpointError, "no such file"),
        ("none.pth", "resnet10t", CheckpointError, "no such checkpoint"),
        ("words.pth", "resnet10t", CheckpointError, "cannot be read as plain tensors"),
        ("code.pth", "resnet10t", CheckpointError, "code"),
        ("numbers.pth", "resnet10t", CheckpointError, "more than tensors by name"),
    ]
    for path, name, kind, told in cases:
        with pytest.raises(kind, match=told) as raised:
            load_teacher(tmp_path / path, name, 64)
        assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()


def test_load_teacher__no_network(resnet: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from edge.teacher import load_teacher; asked = [];"
        "sys.addaudithook(lambda event, _: asked.append(event) if event in ('socket.connect', 'socket.getaddrinfo') else None);"
        f"load_teacher(Path({str(resnet)!r}), 'resnet10t.c3_in1k', 64); sys.exit(len(asked))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=200)
    assert done.returncode == 0


def test_weights_of__what_is_in_a_file_of_more(tmp_path: Path) -> None:
    last, average = {"a": torch.zeros(1)}, {"_orig_mod.module.a": torch.ones(1)}
    torch.save({"state_dict": last, "state_dict_ema": average}, tmp_path / "w.pth")
    assert weights_of(tmp_path / "w.pth") == {"a": torch.ones(1)}


@pytest.mark.parametrize(
    ("reductions", "taken"),
    [
        ([2, 4, 8, 16, 32], [2, 3, 4]), ([4, 8, 16, 32], [1, 2, 3]), ([14] * 12, [11, 11, 11]),
        ([8, 16, 16, 16], [0, 3, 3]), ([16, 32, 64], [0, 0, 1]),
    ],
)  # fmt: skip
def test_nearest__the_deepest_of_the_nearest_stride(reductions: list[int], taken: list[int]) -> None:
    assert [nearest(reductions, stride) for stride in (8, 16, 32)] == taken


def test_distill__from_timm_is_learnt(resnet: Path) -> None:
    torch.manual_seed(0)
    settings = Settings(SIDE, 4, 64, 20, teacher=resnet, teacher_model="resnet10t")
    method: Any = build_method("distill", Trunk(build_detector("yolo11n", ["x"], 0), "yolo11n", "neck"), settings).train()
    line = Line(3, (128, 96))
    made = [method.views(line.image(5 * index), np.random.default_rng(index)) for index in range(4)]
    views = [torch.stack(side) for side in zip(*made, strict=True)]
    optimizer = torch.optim.AdamW(method.parameters(), 3e-4)
    losses = []
    for _ in range(10):
        loss = method(*views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.95 * losses[0], losses


def test_pretrain__a_timm_teacher_is_remembered(resnet: Path, pool_dir: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": "distill", "part": "neck", "teacher": resnet, "teacher_model": "resnet10t"}
    path = pretrain(pretrain_request(pool_dir, tmp_path / "run", epochs=1, precision="bf16-mixed", **changes))
    digest, name = load_checkpoint(path).lineage["ssl_teacher"].split()
    assert (len(digest), name) == (12, "resnet10t")
    changes["teacher_model"] = "resnet10t.c3_in1k"
    request = pretrain_request(pool_dir, tmp_path / "run", epochs=1, precision="bf16-mixed", resume=True, **changes)
    with pytest.raises(TrainingError, match="teacher"):
        pretrain(request)
    changes["teacher_model"] = "resnet11t"
    with pytest.raises(TrainingError, match="timm has no model 'resnet11t'"):
        pretrain(pretrain_request(pool_dir, tmp_path / "none", **changes))
    assert not (tmp_path / "none").exists()
