"""What files give a network, and what is left as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from converters.checkpoint import load_checkpoint, save_checkpoint
from converters.errors import CheckpointError
from edge import pretrain_request as request_module
from edge.commands import training
from edge.features import features, frozen_trunk, show
from edge.pretrain_request import PretrainRequest, remedies_of, settings_of, usual_of
from edge.yolo import part_keys
from runtime.progress import Progress


@pytest.fixture
def backbone(checkpoint: Path, tmp_path: Path) -> Path:
    whole = load_checkpoint(checkpoint)
    kept = {key: whole.state[key] for key in part_keys(whole.model, whole.state, "backbone")}
    save_checkpoint(tmp_path / "backbone.pt", replace(whole, names=(), state=kept, kind="backbone"))
    return tmp_path / "backbone.pt"


def test_frozen_trunk__layers_that_no_file_gives_are_not_looked_at(
    backbone: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match=r"--part neck has more layers than the backbone of --init.*take --part backbone"):
        frozen_trunk("yolo11n", "neck", [backbone])
    with pytest.raises(CheckpointError, match="its detector would replace all of"):
        frozen_trunk("yolo11n", "backbone", [backbone, checkpoint])
    capsys.readouterr()
    frozen_trunk("yolo11n", "backbone", [backbone])
    frozen_trunk("yolo11n", "neck", [checkpoint, backbone])
    told = capsys.readouterr().err
    assert told.count(f"injected backbone {backbone}: 240 of 240 tensors") == 2
    assert f"injected detector {checkpoint}: " in told


def test_frozen_trunk__weights_that_are_to_be_trained_further_are_told(
    backbone: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learnt = load_checkpoint(backbone)
    save_checkpoint(tmp_path / "half.pt", replace(learnt, lineage={"ssl_interpolate": "0.5"}))
    save_checkpoint(tmp_path / "whole.pt", replace(learnt, lineage={"ssl_interpolate": "1.0"}))
    tuned = replace(load_checkpoint(checkpoint), lineage={"ssl_interpolate": "0.5"})
    save_checkpoint(tmp_path / "tuned.pt", tuned)
    for name, count in (("half.pt", 1), ("whole.pt", 0), ("tuned.pt", 0)):
        frozen_trunk("yolo11n", "backbone", [tmp_path / name])
        assert capsys.readouterr().err.count("is a mean of weights") == count, name


def test_show__fresh_weights_do_not_fade() -> None:
    canvases = list(np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), dtype=np.uint8))  # a batch and one more
    plain = frozen_trunk("yolo11n", "backbone", ())
    seen = frozen_trunk("yolo11n", "backbone", ())
    show(seen, canvases)
    before, after = (features(trunk, canvases, Progress("look", 17)) for trunk in (plain, seen))
    assert after.std(0).mean() > 10 * before.std(0).mean()
    weights = [{key: value for key, value in trunk.state_dict().items() if "running" not in key} for trunk in (plain, seen)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0] if "num_batches" not in key)
    norms = [layer for layer in seen.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert not seen.training
    assert all(norm.momentum is not None for norm in norms)


@pytest.mark.parametrize(
    ("changes", "processes", "told"),
    [
        ({}, 1, "lower it or --imgsz, give --activation-checkpointing, or give --chunk"),
        ({"method": "mae"}, 1, "lower it or --imgsz, or give --chunk"),
        ({"activation_checkpointing": True, "chunk": 8}, 1, "lower it or --imgsz, or lower --chunk"),
        ({"method": "hybrid"}, 2, "lower it or --imgsz, or start more processes"),
    ],
)
def test_remedies_of__only_what_the_run_can_take(
    changes: dict[str, object], processes: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_module, "several", lambda: processes > 1)
    assert remedies_of(PretrainRequest(Path(), Path(), **changes)) == told  # type: ignore[arg-type]


def test_settings_of__a_run_goes_on_with_as_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = settings_of(PretrainRequest(Path(), Path()))
    monkeypatch.setattr(request_module, "several", lambda: True)
    monkeypatch.setattr(request_module, "world_size", lambda: 2)
    together = settings_of(PretrainRequest(Path(), Path()))
    assert (alone.pop("processes"), together.pop("processes")) == ("", 2)
    assert alone == together


def test_pretrain__from_a_detector_slowly_and_from_all_but_a_part_half_of_the_way(
    checkpoint: Path, backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[PretrainRequest] = []
    monkeypatch.setattr("edge.pretrain.pretrain", asked.append)
    for init, given in ((checkpoint, None), (backbone, None), (None, None), (checkpoint, 0.01)):
        training.pretrain(tmp_path / "run", tmp_path / "pool", init=init, lr=given, interpolate=given and 1.0)
    assert [(each.lr, each.interpolate) for each in asked] == [(3e-4, 0.5), (1e-3, 1.0), (1e-3, 0.5), (0.01, 1.0)]


def test_usual_of__who_has_a_teacher_learns_faster_from_scratch() -> None:
    assert usual_of("distill", None) == (4e-3, 0.5)
    assert usual_of("distill", "detector") == usual_of("cutpaste", "detector") == (3e-4, 0.5)
    assert usual_of("distill", "neck") == usual_of("cutpaste", "neck") == (1e-3, 1.0)
