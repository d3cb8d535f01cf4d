from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converters.checkpoint import load_checkpoint, save_checkpoint
from edge import finetune as finetune_module
from edge import fused_looks, pool_teacher, pseudo_labels, self_training
from edge.errors import TrainingError
from edge.finetune import finetune
from edge.finetune_request import FinetuneRequest
from edge.lineage import UNKNOWN, seen_labels, with_seen
from edge.pool_teacher import PoolTeacher
from edge.pretrain import pretrain
from edge.processes import launched_fabric
from edge.self_training import Pupils
from edge.training import Run
from edge.yolo import build_detector
from runtime.errors import EdgeloopError
from runtime.files import sha256_of_file
from tests.conftest import few_labels, fill_pool
from tests.edge.small_runs import finetune_request, pretrain_request, same_weights


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
        finetune(request(data, tmp_path / name, pool, teacher, imgsz=imgsz, epochs=2))
        looked[name] = json.loads((tmp_path / name / "pseudo_labels.json").read_text())
        looked[name].pop("seconds")  # of the clock
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert ["looked_s" in line for line in log] == [True, False]
        assert capsys.readouterr().err.count("the teacher believes") == 1
    assert looked["a"]["epoch"] == 0
    assert looked["a"]["boxes"] > 0
    assert looked["a"] == looked["b"], "the size of the one that learns does not matter"
    assert looked["a"] != looked["c"]


@pytest.mark.usefixtures("believed")
@pytest.mark.parametrize("cut", ["before it looked", "before the first epoch's end", "between epochs"])
@pytest.mark.parametrize("burn_in", [None, 0.5])
def test_finetune__with_a_teacher_cut_and_resumed_ends_where_the_whole_run_ends(
    data: Path, pool: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str, burn_in: float | None
) -> None:
    whole = finetune(request(data, tmp_path / "whole", pool, checkpoint, burn_in=burn_in))
    finish = Run.finish_epoch

    def killed(run: Run, *arguments: Any) -> None:
        if cut == "between epochs":
            finish(run, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if cut == "before it looked":
            patch.setattr(Pupils, "taught", killed)
        else:
            patch.setattr(Run, "finish_epoch", killed)
        finetune(request(data, tmp_path / "run", pool, checkpoint, burn_in=burn_in))
    resume = (tmp_path / "run" / "last.pt").is_file()
    assert resume == (cut == "between epochs" or (burn_in is not None and cut == "before it looked")), "nothing learnt before"
    if resume:
        for teacher in (whole.checkpoint, None):
            with pytest.raises(
                TrainingError, match=r"was started with other settings \(.*teacher \w{12} → (\w{12}|its own average)"
            ):
                finetune(request(data, tmp_path / "run", pool, teacher, resume=True, burn_in=burn_in))
        with pytest.raises(TrainingError, match=r"--teacher .*no\.pt is no file; put back the one that the run began with"):
            finetune(request(data, tmp_path / "run", pool, tmp_path / "no.pt", resume=True, burn_in=burn_in))
    done = finetune(request(data, tmp_path / "run", pool, checkpoint, resume=resume, burn_in=burn_in))
    assert same_weights(whole.checkpoint, done.checkpoint)
    lineage = load_checkpoint(done.checkpoint).lineage
    assert lineage == load_checkpoint(whole.checkpoint).lineage
    assert (lineage["teacher"], lineage["teacher_sha256"]) == ("yolo11n at 64 px", sha256_of_file(checkpoint))


@pytest.mark.usefixtures("believed")
def test_finetune__a_teacher_for_which_memory_is_short_is_told(
    data: Path, pool: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_teacher, "batch_detector", lambda *_: lambda _: np.empty(2**50))
    with pytest.raises(
        TrainingError, match="out of memory with a teacher that looks at 16 frames at once; lower --batch below that"
    ):
        finetune(request(data, tmp_path / "run", pool, checkpoint, batch=24))


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


def test_finetune__a_teacher_that_may_know_held_out_images_is_told_and_in_the_lineage(
    data: Path, pool: Path, tmp_path: Path, capsys: Any
) -> None:
    alone = finetune(finetune_request(data, tmp_path / "alone", epochs=1)).checkpoint
    own, other = load_checkpoint(alone).lineage["labels_sha256"], "1" * 64
    lines: dict[str, tuple[dict[str, str], str]] = {
        "own": ({"labels_sha256": own}, ""),
        "unknown": ({}, "does not say which labels it learnt from"),
        "other": ({"labels_sha256": other}, "learnt from other labels; if held-out"),
        "before": (with_seen({"labels_sha256": own}, {other}), "learnt from other labels as well"),
        "of its teacher": (with_seen({"labels_sha256": own}, {UNKNOWN}), "learnt from other labels as well"),
    }
    capsys.readouterr()
    for name, (lineage, told) in lines.items():
        teacher = tmp_path / f"{name}.pt"
        save_checkpoint(teacher, replace(load_checkpoint(alone), lineage=lineage))
        asked = request(data, tmp_path / "run", pool, teacher)
        found = PoolTeacher(asked, load_checkpoint(alone).names).lineage(own)
        assert seen_labels(found) == {own} | (seen_labels(lineage) or {UNKNOWN})
        assert found["teacher"] == "yolo11n at 64 px"
        said = capsys.readouterr().err
        assert (told in said) if told else not said


def test_finetune__labels_are_told_through_what_a_detector_began_as_and_who_taught_it(
    data: Path, pool: Path, checkpoint: Path, tmp_path: Path
) -> None:
    others = {name: tmp_path / f"{name}.pt" for name in ("first", "teacher")}
    digests = {name: str(number) * 64 for number, name in enumerate(others)}
    for name, path in others.items():
        save_checkpoint(path, replace(load_checkpoint(checkpoint), lineage={"labels_sha256": digests[name]}))
    backbone = pretrain(pretrain_request(pool, tmp_path / "ssl", init=others["first"]))
    taught = finetune(request(data, tmp_path / "taught", pool, others["teacher"], init=(backbone,))).checkpoint
    lineage = load_checkpoint(taught).lineage
    own = lineage["labels_sha256"]
    assert seen_labels(lineage) == {own, *digests.values()}
    alone = finetune(finetune_request(few_labels(tmp_path / "few", held_out=0), tmp_path / "alone", epochs=1, init=(taught,)))
    assert alone.accuracy is None
    after = load_checkpoint(alone.checkpoint).lineage
    assert seen_labels(after) == seen_labels(lineage)
    stale = [key for key in after if key.startswith(("teacher", "held_out_", "last_look_"))]
    assert {key for key in lineage if key.startswith(("teacher", "held_out_", "last_look_"))}, "it would be told"
    assert not stale, "that was the one it began as"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "backbone"}, r"--teacher .*teacher\.pt: it is a backbone; fine-tune it on the same labels first"),
        ({"names": tuple("abcdefg")}, r"it knows a, b, c, d, e and 2 more, but the labels have "),
        ({"imgsz": 50}, r"--teacher .*teacher\.pt: it was trained at 50 px, no multiple of 32"),
        ({"imgsz": 0}, r"--teacher .*teacher\.pt: it was trained at 0 px, no multiple of 32 from 32 to 4096"),
        ({"imgsz": 3_200_000}, r"--teacher .*teacher\.pt: it was trained at 3200000 px, no multiple of 32 from 32 to 4096"),
        ({"names": (1, 2)}, r"--teacher .*teacher\.pt is an incomplete checkpoint .*names holds more than strings"),
        ({"names": ("x", "y")}, r"--teacher .*teacher\.pt: it knows x, y, but the labels have "),
        (None, r"--teacher .*teacher\.pt: no such checkpoint"),
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
    assert not (tmp_path / "run").exists()


def test_finetune__a_teacher_without_a_pool_is_refused(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="--teacher labels the frames of --pool"):
        finetune(finetune_request(data, tmp_path / "run", teacher=checkpoint))
