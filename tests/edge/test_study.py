from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from calibration.labels import load_dataset
from converters.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from edge import study as study_module
from edge.demo.scene import SimulatedScene
from edge.errors import TrainingError
from edge.study import _pool, _unlabeled, study
from edge.study_plan import SetPlan, StudyPlan, load_plan
from edge.training import Run
from edge.yolo import build_detector
from runtime.errors import EdgeloopError, SourceError
from runtime.images import read_image
from runtime.pool import Pool
from tests.conftest import write_images
from tests.edge.small_runs import plan_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study-data")
    SimulatedScene.make(out, labels=24, seed=0, imgsz=128)
    dataset = load_dataset(out / "data.yaml")
    images = dataset.train[0].path.parent
    (images.parent / "data.yaml").write_text(yaml.safe_dump({"names": list(dataset.names)}))
    return images.parent


def cut(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def cut_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    finish = Run.finish_epoch

    def killed(run: Run, *arguments: Any) -> None:
        finish(run, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "finish_epoch", killed)
        yield


@pytest.mark.slow
def test_study__runs_what_is_missing_and_shares_what_is_the_same(
    folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = tmp_path / "study.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(plan_of(folder)))
    records = study(load_plan(path), out)
    assert [record["arm"] for record in records] == ["scratch", "ssl", "ssl+pool"]
    assert [record.get("last_look_frames", 0) > 0 for record in records] == [False, False, True]
    assert all(0 <= record["map50_95"] <= 1 for record in records)
    pretrained = sorted(path.name for path in (out / "line" / "seed0").glob("_ssl-scratch-*"))
    assert len(pretrained) == 2
    capsys.readouterr()
    path.write_text(yaml.safe_dump(plan_of(folder, fractions=[0.8, 0.4])))
    grown = study(load_plan(path), out)
    assert [record for record in grown if record["fraction"] == 0.8] == records
    assert "labels-0.8" not in capsys.readouterr().err, "nothing of the first was run again"
    half, quarter = (load_dataset(out / "line" / "seed0" / f"_labels-{share:g}" / "data.yaml") for share in (0.8, 0.4))
    assert {item.path for item in quarter.train} < {item.path for item in half.train}
    assert {item.path for item in quarter.val} == {item.path for item in half.val}
    assert len((out / "results.jsonl").read_text().splitlines()) == 6
    (out / "line" / "seed0" / "ssl-0.4" / "result.json").unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("edge.study.finetune", cut)
        study(load_plan(path), out)
    assert len((out / "results.jsonl").read_text().splitlines()) == 5, "all that are there, also while another one runs"
    path.write_text(yaml.safe_dump(plan_of(folder, arms={"scratch": {"pool": True}})))
    with pytest.raises(TrainingError, match=r"a study with other arms\.scratch"):
        study(load_plan(path), out)
    path.write_text(yaml.safe_dump(plan_of(folder, imgsz=96)))
    with pytest.raises(TrainingError, match="a study with other imgsz"):
        study(load_plan(path), out)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": "no.pt"}, r"no such checkpoint: no\.pt"),
        ({"arms": {"a": {"weights": "elsewhere/{sett}-{seed}.pt"}}}, r"no such checkpoint: elsewhere/\{sett\}-0\.pt"),
        ({"arms": {"a": {"ssl": {"method": "distill", "teacher": "no.pt"}}}}, r"no such checkpoint: no\.pt"),
        ({"sets": {"a": {"folder": "nowhere"}}}, r"sets\.a: nowhere/images is no folder"),
    ],
)
def test_study__what_is_missing_is_told_before_the_first_run(
    folder: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(EdgeloopError, match=told):
        study(StudyPlan.model_validate(plan_of(folder, **changes)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_study__fractions_are_compared_seed_by_seed(tmp_path: Path) -> None:
    """Whole groups are held out, so a seed may leave fewer images than another."""
    for kind in ("images", "labels"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    (tmp_path / "set" / "data.yaml").write_text("names: [one]\n")
    for index, path in enumerate(write_images(tmp_path / "drawn", 14, 64)):
        name = f"{min(index, 5)}_{index}"  # groups of 1, 1, 1, 1, 1 and 9
        path.rename(tmp_path / "set" / "images" / f"{name}.jpg")
        (tmp_path / "set" / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    sets = {"line": {"folder": str(tmp_path / "set"), "group": "^(.)"}}
    plan = StudyPlan.model_validate(plan_of(tmp_path, sets=sets, arms={"scratch": {}}, fractions=[0.25, 0.4], seeds=[1, 0]))
    with pytest.raises(TrainingError, match=r"fractions 0\.25 and 0\.4 of line are 2 labels both with seed 0; take one out"):
        study(plan, tmp_path / "out")


def test_study__other_labels_are_another_study(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(shutil.copytree(folder, tmp_path / "own"))
    monkeypatch.setattr(study_module, "_run", cut)
    plan = StudyPlan.model_validate(plan_of(own))
    with pytest.raises(KeyboardInterrupt):
        study(plan, tmp_path / "out")
    assert "0 of 3 runs so far" in (tmp_path / "out" / "table.md").read_text()
    with pytest.raises(TrainingError, match=r"fractions 0\.8 and 0\.81 of line are \d+ labels both"):
        study(StudyPlan.model_validate(plan_of(own, fractions=[0.8, 0.81])), tmp_path / "out")
    label = max((own / "labels").iterdir(), key=lambda path: path.stat().st_size)
    label.write_text(label.read_text().splitlines()[0] + "\n0 0.5 0.5 0.25 0.25\n")
    with pytest.raises(TrainingError, match=r"a study with other content of sets\.line; choose another --out"):
        study(plan, tmp_path / "out")


@pytest.mark.slow
def test_study__arms_share_a_teacher_of_their_labels(folder: Path, tmp_path: Path, checkpoint: Path) -> None:
    arm = {"start": "coco", "pool": True, "teacher": {"imgsz": 96}}
    plan = plan_of(folder, weights=str(checkpoint), arms={"taught": arm, "scratch+taught": {**arm, "start": "scratch"}})
    records = study(StudyPlan.model_validate(plan), tmp_path / "out")
    (run,) = (tmp_path / "out" / "line" / "seed0").glob("_teacher-*")
    teacher = load_checkpoint(run / "detector.pt")
    assert teacher.imgsz == 96
    assert not (run / "last.pt").exists()
    for record in records:
        assert record["last_look_frames"] > 0
        assert "look_seconds" in record
        assert record["teacher_map50_95"] == float(teacher.lineage["held_out_map50_95"])
        assert "teacher_seconds" in record
        student = load_checkpoint(tmp_path / "out" / "line" / "seed0" / f"{record['arm']}-0.8" / "run" / "detector.pt")
        assert student.imgsz == 64
        assert student.lineage["labels_sha256"] == teacher.lineage["labels_sha256"]
    plan["arms"]["taught"]["teacher"] = {"imgsz": 128}
    with pytest.raises(TrainingError, match=r"a study with other arms\.taught;"):
        study(StudyPlan.model_validate(plan), tmp_path / "out")


@pytest.mark.slow
def test_study__a_run_with_a_pool_that_was_cut_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = StudyPlan.model_validate(plan_of(folder, arms={"pool": {"pool": True}}))
    with cut_after_an_epoch(monkeypatch):
        study(plan, tmp_path / "out")
    assert (tmp_path / "out" / "line" / "seed0" / "pool-0.8" / "run" / "last.pt").is_file()
    assert len(study(plan, tmp_path / "out")) == 1


def test_pool__what_shows_a_held_out_image_is_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted((folder / "images").iterdir())
    again = tmp_path / "again.jpg"
    assert cv2.imwrite(str(again), read_image(images[0]), [cv2.IMWRITE_JPEG_QUALITY, 60])
    with Pool.open(_pool(tmp_path / "pool", [*images[1:4], again], [images[0]])) as pool:
        assert len(pool) == 3
    assert f"shows a held-out image: {images[0].name}" in capsys.readouterr().err


def test_pool__a_damaged_picture_among_many_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = write_images(tmp_path / "images", 24)
    paths[3].write_bytes(b"")
    with Pool.open(_pool(tmp_path / "_pool", paths, paths[:1])) as pool:
        assert len(pool) == 22
    assert f"left out: {paths[3]} cannot be decoded as an image (0 bytes)" in capsys.readouterr().err
    paths[4].write_bytes(b"")
    with pytest.raises(SourceError, match="2 of the 24 images are damaged"):
        _pool(tmp_path / "other" / "_pool", paths, paths[:1])


def test_unlabeled__frames_of_scenes_that_are_held_out_stay_out(tmp_path: Path) -> None:
    frames = [tmp_path / f"{name}.jpg" for name in ("12_a", "12_b", "13_a", "14_c")]
    for path in frames:
        path.touch()
    spec = SetPlan(folder="boards", unlabeled=str(tmp_path), group=r"^(\d+)")
    assert _unlabeled(spec, [Path("boards/images/12_test.jpg"), Path("boards/images/15_test.jpg")]) == frames[2:]
    assert not _unlabeled(SetPlan(folder="boards"), [])


def test_study__weights_of_another_architecture_are_told_before_the_first_run(folder: Path, tmp_path: Path) -> None:
    detector = build_detector("yolov8n", ["x"], 0)
    save_checkpoint(tmp_path / "v8.pt", Checkpoint("yolov8n", ("x",), detector.state_dict(), 64))
    plan = StudyPlan.model_validate(plan_of(folder, weights=str(tmp_path / "v8.pt")))
    with pytest.raises(TrainingError, match=r"v8\.pt is of yolov8n, but the model of the plan is yolo11n"):
        study(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_study__a_teacher_of_another_architecture_is_told_before_the_first_run(
    folder: Path, tmp_path: Path, checkpoint: Path
) -> None:
    arm: dict[str, Any] = {"pool": True, "teacher": {"imgsz": 64, "model": "yolov8n", "weights": str(checkpoint)}}
    plan = plan_of(folder, weights=str(checkpoint), arms={"scratch": {}, "a": arm})
    with pytest.raises(TrainingError, match=r"is of yolo11n, but the model of the teacher of arm a is yolov8n"):
        study(StudyPlan.model_validate(plan), tmp_path / "out")
    arm["teacher"] = {"imgsz": 64, "weights": "no.pt"}
    with pytest.raises(TrainingError, match=r"no such checkpoint: no\.pt"):
        study(StudyPlan.model_validate(plan), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_study__a_teacher_that_was_cut_goes_on(
    folder: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = {"pool": True, "teacher": {"imgsz": 96}}
    budget = {"steps": 6, "batch": 4}  # two epochs
    plan = StudyPlan.model_validate(plan_of(folder, weights=str(checkpoint), arms={"a": arm}, finetune=budget))
    with cut_after_an_epoch(monkeypatch):
        study(plan, tmp_path / "out")
    (last,) = (tmp_path / "out" / "line" / "seed0").glob("_teacher-*/last.pt")
    (record,) = study(plan, tmp_path / "out")
    assert not last.exists()
    assert record["last_look_frames"] > 0


def test_study__weights_of_another_kind_are_told_before_the_first_run(folder: Path, tmp_path: Path, checkpoint: Path) -> None:
    backbone = tmp_path / "backbone.pt"
    save_checkpoint(backbone, replace(load_checkpoint(checkpoint), kind="backbone"))
    for weights, arm, told in (
        (backbone, {"start": "coco"}, "`weights` is to name a whole detector, but .* is a backbone"),
        (
            checkpoint,
            {"start": "coco", "weights": str(checkpoint)},
            "is a whole detector, which leaves nothing of `start: coco`",
        ),
    ):
        plan = StudyPlan.model_validate(plan_of(folder, weights=str(weights), arms={"a": arm}))
        with pytest.raises(TrainingError, match=told):
            study(plan, tmp_path / "out")


def test_init__self_supervision_from_other_weights_is_another_one(folder: Path, tmp_path: Path, checkpoint: Path) -> None:
    other = tmp_path / "other.pt"
    save_checkpoint(other, Checkpoint("yolo11n", ("x",), build_detector("yolo11n", ["x"], 9).state_dict(), 64))
    for weights in (checkpoint, other):
        study(
            StudyPlan.model_validate(plan_of(folder, weights=str(weights), arms={"a": {"start": "coco", "ssl": True}})),
            tmp_path / "out",
        )
        assert load_checkpoint(next((tmp_path / "out").glob("line/seed0/a-*/run/detector.pt"))).lineage["init_neck"]
        shutil.rmtree(next((tmp_path / "out").glob("line/seed0/a-*")))  # no run has used them
    assert len(list((tmp_path / "out").glob("line/seed0/_ssl-coco-*"))) == 2


def test_init__self_supervision_by_another_teacher_is_another_one(
    folder: Path, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "finetune", lambda _: sys.exit("cut"))
    teacher = tmp_path / "teacher.pt"
    ssl = {"method": "distill", "teacher": str(teacher)}
    plan = StudyPlan.model_validate(plan_of(folder, arms={"a": {"ssl": ssl}}))
    for classes in (["x"], ["x", "y"]):
        save_checkpoint(teacher, Checkpoint("yolo11n", tuple(classes), build_detector("yolo11n", classes, 9).state_dict(), 64))
        with pytest.raises(SystemExit, match="cut"):
            study(plan, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("line/seed0/_ssl-scratch-distill-*/neck.pt"))) == 2


def test_study__a_damaged_image_of_the_second_set_is_told_before_the_first_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "other")
    next((tmp_path / "other" / "images").iterdir()).write_bytes(b"")
    monkeypatch.setattr(study_module, "_run", lambda *_: pytest.fail("ran"))
    plan = plan_of(folder)
    plan["sets"] = {**plan["sets"], "other": {**next(iter(plan["sets"].values())), "folder": str(tmp_path / "other")}}
    with pytest.raises(SourceError, match=r"1 of \d+ labelled images are damaged: .* cannot be decoded"):
        study(StudyPlan.model_validate(plan), tmp_path / "out")


def test_study__a_label_of_the_second_set_is_told_before_the_first_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "other")
    labels = next(path for path in (tmp_path / "other" / "labels").iterdir() if path.read_text())
    labels.write_text("77 0.5 0.5 0.1 0.1\n")
    monkeypatch.setattr(study_module, "_run", lambda *_: pytest.fail("ran"))
    plan = plan_of(folder)
    plan["sets"] = {**plan["sets"], "other": {**next(iter(plan["sets"].values())), "folder": str(tmp_path / "other")}}
    with pytest.raises(TrainingError, match=r"sets\.other: (.|\n)*class 77 is unknown"):
        study(StudyPlan.model_validate(plan), tmp_path / "out")
    assert not (tmp_path / "out").exists()
