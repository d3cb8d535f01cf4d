from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from converters.checkpoint import load_checkpoint
from edge import pretrain as pretrain_module
from edge import training
from edge import trunk as trunk_module
from edge.errors import TrainingError
from edge.methods.simclr import SimCLR
from edge.pretrain import pretrain
from edge.training import Awaited, Run, memory_told
from edge.yolo import build_detector, inject
from runtime.errors import PoolError
from tests.conftest import fill_pool
from tests.edge.small_runs import pretrain_request, same_weights


def test_pretrain__writes_a_backbone_and_is_deterministic(pool_dir: Path, tmp_path: Path) -> None:
    first, second = (pretrain(pretrain_request(pool_dir, tmp_path / name)) for name in ("a", "b"))
    assert same_weights(first, second)
    loaded = load_checkpoint(first)
    assert (loaded.kind, loaded.model, len(loaded.state), loaded.training) == ("backbone", "yolo11n", 240, None)
    assert loaded.lineage["ssl"] == "simclr"
    records = [json.loads(line) for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [1, 2]
    with (tmp_path / "a" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in records]
    assert len(list((tmp_path / "a" / "tensorboard").iterdir())) == 1


def test_pretrain__another_seed_gives_other_weights(pool_dir: Path, tmp_path: Path) -> None:
    first, second = (pretrain(pretrain_request(pool_dir, tmp_path / str(seed), seed=seed, epochs=1)) for seed in (0, 1))
    assert not same_weights(first, second)


def test_pretrain__too_few_frames(tmp_path: Path) -> None:
    fill_pool(tmp_path / "empty", 0)
    fill_pool(tmp_path / "one", 1)
    with pytest.raises(PoolError, match="is empty"):
        pretrain(pretrain_request(tmp_path / "empty", tmp_path / "run"))
    with pytest.raises(TrainingError, match="but 2 are needed"):
        pretrain(pretrain_request(tmp_path / "one", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_pretrain__settings_that_do_not_go_together(pool_dir: Path, tmp_path: Path, checkpoint: Path) -> None:
    changes: dict[str, Any]
    for changes, told in (
        ({"method": "distill"}, "distill needs a teacher"), ({"teacher": checkpoint}, "--teacher is for distill, and simclr"),
        ({"method": "distill", "teacher_model": "resnet50"}, "distill needs a teacher"),
        ({"teacher_model": "resnet50"}, "--teacher-model says what --teacher is; give both"),
    ):  # fmt: skip
        with pytest.raises(TrainingError, match=told):
            pretrain(pretrain_request(pool_dir, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


def test_pretrain__a_truncated_frame_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for frames in (8, 24):
        fill_pool(tmp_path / f"pool{frames}", frames)
        victim = next((tmp_path / f"pool{frames}" / "frames").glob("*/*.jpg"))
        victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(TrainingError, match=r"1 of 8 frames are damaged, first \w+\.jpg; .*edge pool check"):
        pretrain(pretrain_request(tmp_path / "pool8", tmp_path / "run8", epochs=1))
    pretrain(pretrain_request(tmp_path / "pool24", tmp_path / "run24", epochs=1))
    assert f"left out, damaged: {victim.name}" in capsys.readouterr().err


def test_pretrain__a_loss_that_is_no_number_ends_the_run_and_the_checkpoint_before_it_stays(
    pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = SimCLR.forward
    monkeypatch.setattr(training, "_SAVE_EVERY_S", 0.0)

    def poisoned(method: SimCLR, *views: torch.Tensor) -> torch.Tensor:
        loss = forward(method, *views)
        return loss * float("nan") if (tmp_path / "run" / "last.pt").exists() else loss

    monkeypatch.setattr(SimCLR, "forward", poisoned)
    with pytest.raises(TrainingError, match=r"loss became nan in epoch 2; lower --lr .*last\.pt if the weights before it"):
        pretrain(pretrain_request(pool_dir, tmp_path / "run"))
    kept = load_checkpoint(tmp_path / "run" / "last.pt")
    assert kept.training
    assert kept.training["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in kept.state.values())
    assert not (tmp_path / "run" / "backbone.pt").exists()


@pytest.mark.parametrize(("batch", "look_every"), [(8, 500), (4, 500), (8, 2)])
def test_pretrain__features_that_collapse_end_the_run_and_are_logged(
    pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, look_every: int
) -> None:
    monkeypatch.setattr(pretrain_module, "_LOOK_EVERY", look_every)
    monkeypatch.setattr(trunk_module, "pooled", lambda maps: maps[0].mean((2, 3)) * 0 + 1)
    with pytest.raises(TrainingError, match=r"collapsed \(effective rank 1\.0, spread 0\.000\).* --method vicreg"):
        pretrain(pretrain_request(pool_dir, tmp_path / "run", batch=batch))
    assert not list((tmp_path / "run").glob("*.pt"))
    (record,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert (record["epoch"], record["effective_rank"], record["deviation"]) == (1, 1.0, 0.0)


def test_pretrain__how_long_it_waited_for_views_is_logged(pool_dir: Path, tmp_path: Path) -> None:
    pretrain(pretrain_request(pool_dir, tmp_path / "run"))
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert 0 <= record["waited_s"] <= record["seconds"]


def test_awaited__counts_what_making_takes_and_not_what_learning_takes() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.02)
            yield number

    batches = Awaited(slow())
    for _ in batches:
        time.sleep(5 * 0.02)
    assert batches.waited_s >= 3 * 0.02
    before_s = batches.waited_s
    for _ in Awaited([1, 2]):
        time.sleep(0.02)
    assert batches.waited_s == before_s


@pytest.mark.parametrize("method", ["dense", "moco", "hybrid"])
def test_pretrain__backbone_and_neck_by_other_methods(pool_dir: Path, tmp_path: Path, method: str) -> None:
    path = pretrain(pretrain_request(pool_dir, tmp_path / "run", method=method, part="neck", epochs=2))
    loaded = load_checkpoint(path)
    assert (path.name, loaded.kind, loaded.lineage["ssl"]) == ("neck.pt", "neck", method)
    assert max(int(key.split(".")[1]) for key in loaded.state) == 22
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(record["effective_rank"] > 1 and record["images_per_s"] > 0 for record in records)


def test_pretrain__a_localizer_is_all_but_the_classes(pool_dir: Path, tmp_path: Path) -> None:
    path = pretrain(pretrain_request(pool_dir, tmp_path / "run", method="cutpaste", part="localizer"))
    assert path.name == "localizer.pt"
    found = load_checkpoint(path)
    for names in (["one"], ["one", "two"]):
        detector = build_detector("yolo11n", names, 5)
        fresh = {key: value.clone() for key, value in detector.state_dict().items()}
        told = str(inject(detector, found, "yolo11n"))
        after = detector.state_dict()
        left = {key for key in after if key not in found.state}
        assert left == {key for key in after if key.startswith("model.23.cv3.")}, "also where the classes are as many"
        assert all(torch.equal(after[key], fresh[key]) for key in left)
        assert all(torch.equal(after[key], value) for key, value in found.state.items())
        assert f"{len(left)} left fresh (class branch, not pretrained)" in told
    neck = load_checkpoint(pretrain(pretrain_request(pool_dir, tmp_path / "neck", method="cutpaste", part="neck"))).state
    assert set(neck) == {key for key in found.state if int(key.split(".")[1]) < 23}
    assert all(torch.equal(value, found.state[key]) for key, value in neck.items()), "the same training, less is kept"
    for part, method, told in (
        ("localizer", "dense", "dense can train neck or backbone, but --part is localizer"),
        ("backbone", "cutpaste", "cutpaste can train localizer or neck"),
        ("neck", "mae", "mae can train backbone,"),
    ):
        with pytest.raises(TrainingError, match=told):
            pretrain(pretrain_request(pool_dir, tmp_path / "other", method=method, part=part))


@pytest.mark.parametrize("fresh", [False, True])
def test_pretrain__interpolated_lies_between_what_it_began_as_and_what_was_learnt(
    pool_dir: Path, tmp_path: Path, fresh: bool
) -> None:
    start = None if fresh else pretrain(pretrain_request(pool_dir, tmp_path / "start", epochs=1))
    written = [
        load_checkpoint(pretrain(pretrain_request(pool_dir, tmp_path / str(share), init=start, interpolate=share, seed=1)))
        for share in (1.0, 0.25)
    ]
    assert {each.lineage["ssl_from_scratch"] for each in written} == {str(fresh)}
    whole, quarter = (each.state for each in written)
    began = load_checkpoint(start).state if start else build_detector("yolo11n", ["x"], 1).state_dict()
    assert not torch.equal(began["model.0.conv.weight"], whole["model.0.conv.weight"])
    for key, value in quarter.items():
        expected = 0.75 * began[key] + 0.25 * whole[key] if value.is_floating_point() else whole[key]
        torch.testing.assert_close(value, expected)


def test_pretrain__in_chunks_is_still_simclr_of_the_whole_batch(pool_dir: Path, tmp_path: Path) -> None:
    pretrain(pretrain_request(pool_dir, tmp_path / "whole", epochs=1))
    pretrain(pretrain_request(pool_dir, tmp_path / "chunks", epochs=1, chunk=4))
    losses = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["loss"] for name in ("whole", "chunks")]
    assert losses[1] == pytest.approx(losses[0], rel=0.15), "batches of four would lie near ln 7 and not ln 15"


def test_pretrain__a_chunk_is_never_a_single_image(pool_dir: Path, tmp_path: Path) -> None:
    assert pretrain(pretrain_request(pool_dir, tmp_path, imgsz=32, batch=9, chunk=4, epochs=1)).is_file()


@pytest.mark.parametrize("method", ["moco", "dense"])
def test_pretrain__in_chunks_by_accumulated_gradients(pool_dir: Path, tmp_path: Path, method: str) -> None:
    how = {"epochs": 1, "method": method, "part": "neck", "batch": 9}
    whole = pretrain(pretrain_request(pool_dir, tmp_path / "whole", **how))
    chunks = pretrain(pretrain_request(pool_dir, tmp_path / "chunks", **how, chunk=4))
    assert not same_weights(whole, chunks)
    losses = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["loss"] for name in ("whole", "chunks")]
    assert losses[1] == pytest.approx(losses[0], rel=0.5)
    with pytest.raises(TrainingError, match="--chunk 1 leaves batch norm a single image"):
        pretrain(pretrain_request(pool_dir, tmp_path / "one", **how, chunk=1))


def test_pretrain__the_average_follows_the_weights(pool_dir: Path, tmp_path: Path) -> None:
    how = {"epochs": 6, "seed": 3}
    last = load_checkpoint(pretrain(pretrain_request(pool_dir, tmp_path / "last", **how))).state["model.0.conv.weight"]
    average = load_checkpoint(pretrain(pretrain_request(pool_dir, tmp_path / "average", **how, average=True))).state
    began = build_detector("yolo11n", ["object"], 3).state_dict()["model.0.conv.weight"]
    way = (last - began).norm()
    assert 0 < (average["model.0.conv.weight"] - last).norm() < way
    assert (average["model.0.conv.weight"] - began).norm() < way


def test_pretrain__out_of_memory_names_the_batch_and_what_helps(
    pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.2 GiB")

    monkeypatch.setattr(Run, "apply", full)
    with pytest.raises(
        TrainingError, match=r"out of memory with --batch 8; lower it or --imgsz, .*-checkpointing, or give --chunk"
    ):
        pretrain(pretrain_request(pool_dir, tmp_path / "run"))
    assert not (tmp_path / "run" / "backbone.pt").exists()


def test_memory_told__only_memory() -> None:
    with pytest.raises(TrainingError, match="--batch 4; do this"), memory_told("--batch 4", "do this"):
        torch.empty(2**60, dtype=torch.uint8)  # what the CPU's allocator says
    with pytest.raises(RuntimeError, match="something else"), memory_told("--batch 4", "do this"):
        raise RuntimeError("something else")
