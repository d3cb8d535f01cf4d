from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from calibration.labels import Dataset, load_dataset
from converters.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from converters.errors import CheckpointError
from edge import run_folder as run_folder_module
from edge import training
from edge.errors import TrainingError
from edge.finetune import FinetuneRequest, finetune
from edge.pretrain import PretrainRequest, pretrain
from edge.processes import Precision, detection_loss, launched_fabric
from edge.run_folder import run_folder
from edge.training import Budget, Run, memory_told
from edge.yolo import build_detector, inject
from runtime.errors import PoolError
from tests.conftest import ROOT, few_labels, fill_pool


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_labels(tmp_path_factory.mktemp("data"), held_out=2)


def pretrain_request(pool: Path, out: Path, **changes: object) -> PretrainRequest:
    small = {"method": "simclr", "part": "backbone", "imgsz": 64, "batch": 8, "epochs": 2}
    return PretrainRequest(pool, out, **{**small, **changes})  # type: ignore[arg-type]


def finetune_request(data: Path, out: Path, **changes: object) -> FinetuneRequest:
    return FinetuneRequest(data, out, **{"imgsz": 64, "batch": 4, "epochs": 2, **changes})  # type: ignore[arg-type]


def same_weights(first: Path, second: Path) -> bool:
    a, b = load_checkpoint(first).state, load_checkpoint(second).state
    return set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)


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
    assert len(list((tmp_path / "a" / "tensorboard").iterdir())) == 2


def test_pretrain__another_seed_gives_other_weights(pool_dir: Path, tmp_path: Path) -> None:
    first, second = (pretrain(pretrain_request(pool_dir, tmp_path / str(seed), seed=seed, epochs=1)) for seed in (0, 1))
    assert not same_weights(first, second)


def kill_after_first_epoch(arguments: list[str], out: Path) -> None:
    """Starts a command and kills it with -9 in the middle of a later epoch."""
    process = subprocess.Popen([sys.executable, "-m", "edge.cli", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (out / "last.pt").exists():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_pretrain__killed_and_resumed_ends_where_the_whole_run_ends(pool_dir: Path, tmp_path: Path) -> None:
    whole = pretrain(pretrain_request(pool_dir, tmp_path / "whole", epochs=4))
    out = tmp_path / "killed"
    options = ["--imgsz", "64", "--batch", "8", "--epochs", "4", "--method", "simclr", "--part", "backbone"]
    kill_after_first_epoch(["pretrain", "--pool", str(pool_dir), "--out", str(out), *options], out)
    done = int(load_checkpoint(out / "last.pt").training["epoch"])  # type: ignore[index]
    assert 1 <= done < 4
    resumed = pretrain(pretrain_request(pool_dir, out, epochs=4, resume=True))
    assert same_weights(whole, resumed)
    assert [json.loads(line)["epoch"] for line in (out / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


@pytest.mark.slow
def test_finetune__killed_and_resumed_ends_where_the_whole_run_ends(data: Path, tmp_path: Path) -> None:
    whole = finetune(finetune_request(data, tmp_path / "whole", epochs=4))
    out = tmp_path / "killed"
    options = ["--imgsz", "64", "--batch", "4", "--epochs", "4"]
    kill_after_first_epoch(["finetune", "--data", str(data), "--out", str(out), *options], out)
    assert 1 <= int(load_checkpoint(out / "last.pt").training["epoch"]) < 4  # type: ignore[index]
    resumed = finetune(finetune_request(data, out, epochs=4, resume=True))
    assert same_weights(whole.checkpoint, resumed.checkpoint)
    assert [record["epoch"] for record in resumed.curve] == [1, 2, 3, 4]


@pytest.mark.parametrize(("every_s", "saved"), [(1e9, [1, 4]), (0.0, [1, 2, 3, 4])])
def test_run__short_epochs_are_not_all_written_and_all_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, saved: list[int]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setattr(training, "_SAVE_EVERY_S", every_s)
    layer = torch.nn.Linear(2, 1)
    run = Run(tmp_path, {"layer": layer}, torch.optim.AdamW(layer.parameters()), Budget(4, 1e-3), 0)
    run.start({}, resume=False)
    found = []
    for epoch in run.epochs(1):
        run.step(layer(torch.ones(1, 2)).sum())
        run.finish_epoch(Checkpoint("yolo11n", (), layer.state_dict(), 64, "backbone"), {"loss": float(epoch)})
        state = load_checkpoint(tmp_path / "last.pt").training
        assert state is not None
        found.append(state["epoch"])
    assert sorted(set(found)) == saved
    assert [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [0, 1, 2, 3]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 0), (2, 1), (3, 2), (4, 3)]


def test_finetune__trains_and_evaluates(data: Path, tmp_path: Path) -> None:
    """That it learns to detect is shown by the demo (test_demo.py), which takes minutes."""
    done = finetune(finetune_request(data, tmp_path / "run", epochs=3, eval_every=2))
    fresh = finetune(finetune_request(data, tmp_path / "other", epochs=1))
    assert done.accuracy is not None
    assert done.accuracy.images == 2
    assert [record["epoch"] for record in done.curve if "map50_95" in record] == [2, 3]
    assert not same_weights(done.checkpoint, fresh.checkpoint)


def test_finetune__frozen_backbone_stays(data: Path, pool_dir: Path, tmp_path: Path) -> None:
    backbone = pretrain(pretrain_request(pool_dir, tmp_path / "ssl", epochs=1))
    done = finetune(finetune_request(data, tmp_path / "run", init=(backbone,), epochs=1, freeze=1.0))
    before, after = load_checkpoint(backbone).state, load_checkpoint(done.checkpoint).state
    for key, value in before.items():
        if not key.endswith("num_batches_tracked"):
            torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-6)
    assert load_checkpoint(done.checkpoint).lineage["init_backbone"].startswith("240 of 240 tensors")


def test_finetune__frozen_for_a_share_of_the_epochs_and_slower_near_the_input(data: Path, tmp_path: Path) -> None:
    """The stem stays in the first of two epochs, moves in the second, and with decay less than without."""
    build = build_detector("yolo11n", load_dataset(data).names, 0).state_dict()
    key = "model.0.conv.weight"
    moved = {}
    cases: dict[str, dict[str, float]] = {
        "frozen": {"epochs": 2, "freeze": 1.0},
        "half": {"epochs": 2, "freeze": 0.5},
        "decayed": {"epochs": 2, "layer_decay": 0.8},
        "whole": {"epochs": 2},
    }
    for name, changes in cases.items():
        finetune(finetune_request(data, tmp_path / name, **changes))
        student = load_checkpoint(tmp_path / name / "last.pt").training["modules"]["detector"]  # type: ignore[index]
        moved[name] = float((student[key] - build[key]).abs().mean())
    assert moved["frozen"] == 0
    assert 0 < moved["half"] < moved["whole"]
    assert 0 < moved["decayed"] < 0.2 * moved["whole"]


def test_detection_loss__is_nearly_the_same_in_mixed_precision() -> None:
    detector = build_detector("yolo11n", ["a", "b"], 0).train()
    rng = torch.Generator().manual_seed(0)
    batch = {
        "img": torch.rand(4, 3, 128, 128, generator=rng), "cls": torch.tensor([[0.0], [1.0], [0.0], [1.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]] * 4), "batch_idx": torch.arange(4.0),
    }  # fmt: skip
    whole, mixed = (float(detection_loss(detector, batch, launched_fabric(each)).detach()) for each in get_args(Precision))
    assert mixed == pytest.approx(whole, rel=0.02)
    assert mixed != whole


def test_finetune__mixed_precision_leaves_whole_weights(data: Path, tmp_path: Path) -> None:
    done, whole = (
        finetune(finetune_request(data, tmp_path / each, epochs=1, precision=each)) for each in ("bf16-mixed", "32-true")
    )
    assert done.curve[0]["loss"] != whole.curve[0]["loss"], "it was computed otherwise"
    assert all(value.dtype != torch.bfloat16 for value in load_checkpoint(done.checkpoint).state.values())


def test_start__folders_in_use_and_other_settings(pool_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="to resume from"):
        pretrain(pretrain_request(pool_dir, tmp_path / "run", resume=True))
    done = pretrain(pretrain_request(pool_dir, tmp_path / "run", epochs=1))
    with pytest.raises(TrainingError, match="holds a run already"):
        pretrain(pretrain_request(pool_dir, tmp_path / "run", epochs=1))
    assert pretrain(pretrain_request(pool_dir, tmp_path / "run", epochs=1, resume=True)) == done  # finished: nothing to do
    done.unlink()
    with pytest.raises(TrainingError, match="to resume on"):
        pretrain(pretrain_request(pool_dir, tmp_path / "run", epochs=1, resume=True))


def test_finetune__resumed_with_other_settings(data: Path, tmp_path: Path) -> None:
    done = finetune(finetune_request(data, tmp_path / "run", epochs=1))
    for changes, told in (
        ({"epochs": 3}, "epochs 1 → 3"),
        ({"epochs": 1, "freeze": 1.0}, "freeze 0.0 → 1.0"),
    ):
        with pytest.raises(TrainingError, match=rf"other settings .*{told}"):
            finetune(finetune_request(data, tmp_path / "run", resume=True, **changes))
    (tmp_path / "released").mkdir()
    done.checkpoint.rename(tmp_path / "released" / "last.pt")
    with pytest.raises(TrainingError, match="without training state"):
        finetune(finetune_request(data, tmp_path / "released", epochs=1, resume=True))


def test_pretrain__too_few_frames(tmp_path: Path) -> None:
    fill_pool(tmp_path / "empty", 0)
    fill_pool(tmp_path / "one", 1)
    with pytest.raises(PoolError, match="is empty"):
        pretrain(pretrain_request(tmp_path / "empty", tmp_path / "run"))
    with pytest.raises(TrainingError, match="but 2 are needed"):
        pretrain(pretrain_request(tmp_path / "one", tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_run_folder__one_process_at_a_time(pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(run_folder_module, "_PATIENCE_S", 0.3)
    with run_folder(out, resume=False):
        (out / "frames").mkdir()
        (out / "frames" / "1.jpg").touch()
        for start in (lambda: pretrain(pretrain_request(pool_dir, out)), lambda: finetune(finetune_request(tmp_path, out))):
            with pytest.raises(TrainingError, match=f"another process trains in {out}"):
                start()
        assert (out / "frames" / "1.jpg").exists(), "the refused ones touched nothing"
        (out / ".last.pt.1.partial").touch()
    assert {path.name for path in out.iterdir()} == {".lock", ".last.pt.1.partial"}, "nothing to resume: its frames are gone"
    with run_folder(out, resume=False):
        assert [path.name for path in out.iterdir()] == [".lock"], "what a killed process left half-written"
    (out / "frames").mkdir()
    with run_folder(out, resume=False):
        pass
    assert (out / "frames").exists(), "somebody else's"
    with pytest.raises(TrainingError, match=r"holds no last\.pt"), run_folder(out, resume=True):
        pass
    with pytest.raises(TrainingError, match=r"holds no last\.pt"), run_folder(tmp_path / "typo", resume=True):
        pass
    assert not (tmp_path / "typo").exists()


def test_pretrain__finished_is_not_taken_for_another_run(
    pool_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pretrain(pretrain_request(pool_dir, tmp_path, epochs=1))
    before = path.stat().st_mtime_ns
    assert pretrain(pretrain_request(pool_dir, tmp_path, epochs=1, resume=True)) == path
    assert "is finished" in capsys.readouterr().err
    changes: dict[str, Any]
    for changes in ({"method": "vicreg"}, {"part": "neck"}, {"epochs": 3}, {"upright": True}):
        with pytest.raises(TrainingError, match=f"was started with other settings .*{next(iter(changes))} "):
            pretrain(pretrain_request(pool_dir, tmp_path, **{"epochs": 1, "resume": True, **changes}))
    assert path.stat().st_mtime_ns == before


def test_load_checkpoint__no_numbers_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    state = {key: value.clone() for key, value in loaded.state.items()}
    state["model.0.bn.running_mean"][0] = float("nan")
    save_checkpoint(tmp_path / "nan.pt", dataclasses.replace(loaded, state=state))
    with pytest.raises(CheckpointError, match=r"nan\.pt holds NaN or infinity in model\.0\.bn\.running_mean"):
        load_checkpoint(tmp_path / "nan.pt")


def test_pretrain__settings_that_do_not_go_together(pool_dir: Path, tmp_path: Path, checkpoint: Path) -> None:
    changes: dict[str, Any]
    for changes, told in (
        ({"method": "distill"}, "distill needs a teacher"), ({"teacher": checkpoint}, "--teacher is for distill, and simclr"),
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
        ("localizer", "dense", "what cutpaste trains, and no other"),
        ("backbone", "cutpaste", "give --part neck"),
    ):
        with pytest.raises(TrainingError, match=told):
            pretrain(pretrain_request(pool_dir, tmp_path / "other", method=method, part=part))


def test_pretrain__interpolated_lies_between_init_and_what_was_learnt(pool_dir: Path, tmp_path: Path) -> None:
    start = pretrain(pretrain_request(pool_dir, tmp_path / "start", epochs=1))
    whole, quarter = (
        load_checkpoint(
            pretrain(pretrain_request(pool_dir, tmp_path / str(share), init=start, interpolate=share, seed=1))
        ).state
        for share in (1.0, 0.25)
    )
    began = load_checkpoint(start).state
    assert not torch.equal(began["model.0.conv.weight"], whole["model.0.conv.weight"])
    for key, value in quarter.items():
        expected = 0.75 * began[key] + 0.25 * whole[key] if value.is_floating_point() else whole[key]
        torch.testing.assert_close(value, expected)
    with pytest.raises(TrainingError, match="give --init, or leave it out"):
        pretrain(pretrain_request(pool_dir, tmp_path / "no", interpolate=0.5))


def test_pretrain__in_chunks_is_still_simclr_of_the_whole_batch(pool_dir: Path, tmp_path: Path) -> None:
    pretrain(pretrain_request(pool_dir, tmp_path / "whole", epochs=1))
    pretrain(pretrain_request(pool_dir, tmp_path / "chunks", epochs=1, chunk=4))
    losses = [json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["loss"] for name in ("whole", "chunks")]
    assert losses[1] == pytest.approx(losses[0], rel=0.15), "batches of four would lie near ln 7 and not ln 15"


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
    with pytest.raises(TrainingError, match=r"out of memory with --batch 8; lower it, give --chunk .*--imgsz"):
        pretrain(pretrain_request(pool_dir, tmp_path / "run"))
    assert not (tmp_path / "run" / "backbone.pt").exists()


def test_memory_told__only_memory() -> None:
    with pytest.raises(TrainingError, match="--batch 4; do this"), memory_told(4, "do this"):
        torch.empty(2**60, dtype=torch.uint8)  # what the CPU's allocator says
    with pytest.raises(RuntimeError, match="something else"), memory_told(4, "do this"):
        raise RuntimeError("something else")


class Killed(Exception):  # noqa: N818  no error: the test's own end of a process
    """Stands for kill -9: nothing after it is run."""


@pytest.mark.parametrize(
    ("stops", "how"),
    [
        ([1, 4], {"method": "hybrid"}),
        ([2, 5, 6], {"method": "moco"}),
        ([1, 10], {"method": "cutpaste", "part": "localizer", "average": True, "chunk": 4, "epochs": 6}),
    ],
)
def test_pretrain__ended_at_any_step_and_resumed_ends_where_the_whole_run_ends(
    pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: list[int], how: dict[str, Any]
) -> None:
    how = {"epochs": 3, "part": "neck", **how}
    whole = pretrain(pretrain_request(pool_dir, tmp_path / "whole", **how))
    apply, steps = Run.apply, 0

    def counted(run: Run) -> None:
        nonlocal steps
        if steps in stops:
            stops.remove(steps)
            raise Killed
        apply(run)
        steps += 1

    monkeypatch.setattr(Run, "apply", counted)
    request = pretrain_request(pool_dir, tmp_path / "run", **how, save_every_s=0.0)
    with pytest.raises(Killed):
        pretrain(request)
    while stops:
        with pytest.raises(Killed):
            pretrain(dataclasses.replace(request, resume=True))
    done = pretrain(dataclasses.replace(request, resume=True))
    assert same_weights(whole, done)


def test_finetune__another_architecture(data: Path, tmp_path: Path, pool_dir: Path) -> None:
    backbone = pretrain(pretrain_request(pool_dir, tmp_path / "ssl", epochs=1, model="yolov8n"))
    with pytest.raises(CheckpointError, match="of yolov8n, but the model is yolo11n"):
        finetune(finetune_request(data, tmp_path / "run", init=(backbone,)))


def test_finetune__weights_that_would_be_replaced_are_refused(
    data: Path, tmp_path: Path, pool_dir: Path, checkpoint: Path
) -> None:
    backbone, neck = (
        pretrain(pretrain_request(pool_dir, tmp_path / part, part=part, epochs=1)) for part in ("backbone", "neck")
    )
    for first, second, kind in ((backbone, neck, "neck"), (neck, checkpoint, "detector"), (backbone, backbone, "backbone")):
        with pytest.raises(CheckpointError, match=rf"its {kind} would replace all of .*{first.name}; name it before that"):
            finetune(finetune_request(data, tmp_path / "run", init=(first, second)))
    finetune(finetune_request(data, tmp_path / "run", init=(checkpoint, neck, backbone), epochs=1))


def test_finetune__nothing_to_train_on(data: Path, tmp_path: Path) -> None:
    copied = tmp_path / "data.yaml"
    copied.write_text(data.read_text())
    (tmp_path / "train.txt").write_text("")
    (tmp_path / "val.txt").write_text((data.parent / "val.txt").read_text())
    from calibration.errors import DataError

    with pytest.raises(DataError, match="`train` names no image"):
        finetune(finetune_request(copied, tmp_path / "run"))
    dataset: Dataset = load_dataset(data)
    assert len(dataset.train) == 8
