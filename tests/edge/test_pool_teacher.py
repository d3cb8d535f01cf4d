from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from converters.checkpoint import load_checkpoint, save_checkpoint
from edge import finetune as finetune_module
from edge import fused_looks, pseudo_labels, self_training
from edge.errors import TrainingError
from edge.finetune import finetune
from edge.finetune_request import FinetuneRequest
from edge.processes import launched_fabric
from edge.training import Run
from edge.yolo import build_detector
from runtime.errors import EdgeloopError
from tests.conftest import few_labels, fill_pool
from tests.edge.small_runs import finetune_request, same_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_labels(tmp_path_factory.mktemp("data"), held_out=4)


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    fill_pool(tmp_path / "pool", 24)
    return tmp_path / "pool"


@pytest.fixture
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a teacher with fresh weights says."""
    for limit in ("LOWEST", "HIGHEST"):
        monkeypatch.setattr(pseudo_labels, limit, 0.0)
    for module in (pseudo_labels, self_training, fused_looks):
        monkeypatch.setattr(module, "DOUBT", 0.0)


def request(data: Path, out: Path, pool: Path, teacher: Path | None, **changes: object) -> FinetuneRequest:
    return finetune_request(data, out, pool=pool, teacher=teacher, **changes)


@pytest.mark.usefixtures("believed")
def test_finetune__a_teacher_that_is_given_looks_once_at_its_own_size_before_the_first_epoch(
    data: Path, pool: Path, checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    own, larger = checkpoint, tmp_path / "larger.pt"
    save_checkpoint(larger, replace(load_checkpoint(checkpoint), imgsz=128))
    looked = {}
    for name, teacher, imgsz in (("a", own, 64), ("b", own, 96), ("c", larger, 64)):
        finetune(request(data, tmp_path / name, pool, teacher, imgsz=imgsz, epochs=1))
        looked[name] = json.loads((tmp_path / name / "pseudo_labels.json").read_text())
        assert capsys.readouterr().err.count("the teacher believes") == 1
    assert looked["a"]["epoch"] == 0
    assert looked["a"]["boxes"] > 0
    assert looked["a"] == looked["b"], "the size of the one that learns does not matter"
    assert looked["a"] != looked["c"]


@pytest.mark.usefixtures("believed")
def test_finetune__with_a_teacher_resumed_ends_where_the_whole_run_ends(
    data: Path, pool: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(request(data, tmp_path / "whole", pool, checkpoint))
    finish = Run.finish_epoch

    def killed(run: Run, *arguments: Any) -> None:
        finish(run, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "finish_epoch", killed)
        finetune(request(data, tmp_path / "run", pool, checkpoint))
    for teacher in (whole.checkpoint, None):
        with pytest.raises(TrainingError, match="was started with other settings"):
            finetune(request(data, tmp_path / "run", pool, teacher, resume=True))
    done = finetune(request(data, tmp_path / "run", pool, checkpoint, resume=True))
    assert same_weights(whole.checkpoint, done.checkpoint)


def test_loss__a_teacher_that_is_given_tells_where_objects_end(tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    nothing = {"img": picture, "cls": torch.zeros(0, 1), "bboxes": torch.zeros(0, 4), "batch_idx": torch.zeros(0)}
    frames = {"img": picture, "cls": torch.zeros(2, 1), "bboxes": torch.full((2, 4), 0.5), "batch_idx": torch.arange(2.0)}
    learnt = []
    for teacher in (None, tmp_path / "teacher.pt"):
        detector = build_detector("yolo11n", ["a", "b"], 0).train()
        asked = FinetuneRequest(tmp_path, tmp_path, pool=tmp_path, teacher=teacher)
        finetune_module._loss(detector, launched_fabric(), asked)((nothing, frames)).backward()  # type: ignore[no-untyped-call]
        sides = [each.grad for name, each in detector.model[-1].named_parameters() if name.startswith("cv2")]
        learnt.append(any(grad is not None and bool(grad.any()) for grad in sides))
    assert learnt == [False, True]


def test_finetune__a_teacher_of_other_labels_is_told(
    data: Path, pool: Path, checkpoint: Path, tmp_path: Path, capsys: Any
) -> None:
    alone = finetune(finetune_request(data, tmp_path / "alone", epochs=1))
    for teacher, told in ((checkpoint, 1), (alone.checkpoint, 0)):
        finetune(request(data, tmp_path / str(told), pool, teacher, epochs=1))
        assert capsys.readouterr().err.count("learnt from other labels") == told


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "backbone"}, r"--teacher .*teacher\.pt is a backbone; fine-tune it on the same labels first"),
        ({"names": ("x", "y")}, r"--teacher .*teacher\.pt knows x, y, but the labels have "),
        (None, r"teacher\.pt"),
    ],
)
def test_finetune__a_teacher_that_cannot_teach_is_told_before_the_training(
    data: Path, pool: Path, checkpoint: Path, tmp_path: Path, changes: dict[str, Any] | None, told: str
) -> None:
    teacher = tmp_path / "teacher.pt"
    if changes:
        save_checkpoint(teacher, replace(load_checkpoint(checkpoint), **changes))
    with pytest.raises(EdgeloopError, match=told):
        finetune(request(data, tmp_path / "run", pool, teacher))
    assert not list((tmp_path / "run").rglob("*.pt"))
