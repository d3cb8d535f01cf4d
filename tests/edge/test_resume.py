"""Run folders: runs that are killed, resumed, asked for twice."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from calibration.labels import load_dataset
from converters.checkpoint import Checkpoint, load_checkpoint
from edge import run_folder as run_folder_module
from edge import training
from edge.errors import TrainingError
from edge.finetune import finetune
from edge.pretrain import pretrain
from edge.run_folder import run_folder
from edge.training import Budget, Run
from tests.conftest import ROOT, few_labels
from tests.edge.small_runs import finetune_request, pretrain_request, same_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_labels(tmp_path_factory.mktemp("data"), held_out=2)


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
    whole = pretrain(pretrain_request(pool_dir, tmp_path / "whole", epochs=4, interpolate=0.5))
    out = tmp_path / "killed"
    options = ["--imgsz", "64", "--batch", "8", "--epochs", "4", "--method", "simclr", "--part", "backbone"]
    kill_after_first_epoch(["pretrain", "--pool", str(pool_dir), "--out", str(out), *options], out)
    done = int(load_checkpoint(out / "last.pt").training["epoch"])  # type: ignore[index]
    assert 1 <= done < 4
    resumed = pretrain(pretrain_request(pool_dir, out, epochs=4, interpolate=0.5, resume=True))
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
    (file,) = (tmp_path / "tensorboard").iterdir()  # the order of two that begin in one second is not defined
    board = EventAccumulator(str(file))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 0), (2, 1), (3, 2), (4, 3)]


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


def test_finetune__a_single_picture_that_leaves_a_single_value_is_told(data: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.txt"
    everything = load_dataset(data)
    one.write_text(f"{next(item.path for item in everything.train if len(item.class_id))}\n")
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"names": list(everything.names), "train": "one.txt", "val": "one.txt"}))
    with pytest.raises(TrainingError, match="a single picture of 32 px is too little for batch norm; raise --imgsz"):
        finetune(finetune_request(tmp_path / "data.yaml", tmp_path / "run", imgsz=32))
    assert finetune(finetune_request(tmp_path / "data.yaml", tmp_path / "larger", imgsz=64)).checkpoint.is_file()


def test_start__a_folder_of_the_other_command(pool_dir: Path, data: Path, tmp_path: Path) -> None:
    pretrain(pretrain_request(pool_dir, tmp_path / "ssl", epochs=1))
    finetune(finetune_request(data, tmp_path / "tuned", epochs=1))
    for start in (
        lambda: finetune(finetune_request(data, tmp_path / "ssl", epochs=1, resume=True)),
        lambda: pretrain(pretrain_request(pool_dir, tmp_path / "tuned", epochs=1, resume=True)),
    ):
        with pytest.raises(TrainingError, match="holds a run of another command; choose another --out"):
            start()


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_resume__from_a_damaged_file_is_no_use(pool_dir: Path, tmp_path: Path, data: Path, command: str) -> None:
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(TrainingError, match=r"last\.pt is damaged, so this run cannot go on; start again in another --out"):
        if command == "pretrain":
            pretrain(pretrain_request(pool_dir, tmp_path, resume=True))
        else:
            finetune(finetune_request(data, tmp_path, resume=True))


def test_run_folder__who_is_interrupted_is_told_what_to_do(
    pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refuse = Run.refuse

    def interrupted(run: Run, *arguments: Any) -> None:
        if run.epoch == epoch:
            raise KeyboardInterrupt
        refuse(run, *arguments)

    monkeypatch.setattr(Run, "refuse", interrupted)
    for epoch, told in ((0, False), (1, True)):
        with pytest.raises(KeyboardInterrupt):
            pretrain(pretrain_request(pool_dir, tmp_path / str(epoch)))
        assert (
            f"what was learnt until the last saving is in {tmp_path / '1'}; the same command goes on" in capsys.readouterr().err
        ) == told


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
    for name in ("one/run", "two/run"):
        with pytest.raises(KeyError), run_folder(tmp_path / name, resume=False):
            if name == "two/run":
                (tmp_path / "two" / "somebody's").touch()
            raise KeyError
    assert {path.name for path in tmp_path.rglob("*")} >= {"two", "somebody's"}
    assert not (tmp_path / "one").exists(), "a folder above that it made"


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
