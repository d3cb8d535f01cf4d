"""What a plan says, and what of it may change later."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from edge.errors import TrainingError
from edge.study_file import same_plan
from edge.study_plan import Arm, StudyPlan, cells_of, keys_told, load_plan
from tests.conftest import ROOT
from tests.edge.small_runs import plan_of


@pytest.fixture
def folder() -> Path:
    """No plan is refused for what is not there before it is run."""
    return Path("nowhere")


def ran(out: Path, arm: str) -> None:
    result = out / "line" / "seed0" / f"{arm}-0.8" / "result.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"set": "line", "arm": arm, "fraction": 0.8, "seed": 0}))


def test_same_plan__what_no_run_has_used_may_change(folder: Path, tmp_path: Path) -> None:
    arms = {"scratch": {}, "ssl": {"ssl": True}}
    same_plan(StudyPlan.model_validate(plan_of(folder, arms=arms)), tmp_path, {})
    ran(tmp_path, "scratch")
    begun = tmp_path / "line" / "seed0" / "ssl-0.8" / "run"
    begun.mkdir(parents=True)
    other = StudyPlan.model_validate(plan_of(folder, arms=arms, pretrain={"epochs": 2, "method": "simclr"}))
    same_plan(other, tmp_path, {})
    assert not begun.exists(), "what was begun with the arm as it was"
    ran(tmp_path, "ssl")
    dropped = StudyPlan.model_validate(plan_of(folder, arms=arms, fractions=[0.4], pretrain={"epochs": 2, "method": "simclr"}))
    same_plan(dropped, tmp_path, {})
    written = json.loads((tmp_path / "study.json").read_text())
    del written["arms"]["ssl"]["ssl"]["average"], written["arms"]["ssl"]["teacher"]
    (tmp_path / "study.json").write_text(json.dumps(written))
    same_plan(dropped, tmp_path, {})  # an earlier version's, which had no such setting
    with pytest.raises(TrainingError, match=r"a study with other arms\.ssl;"):
        same_plan(StudyPlan.model_validate(plan_of(folder, arms=arms)), tmp_path, {})
    with_coco = {**arms, "coco": {"start": "coco"}}
    for weights in ("typo.pt", "coco.pt"):  # no run has used them
        plan = StudyPlan.model_validate({**dropped.model_dump(exclude_unset=True), "arms": with_coco, "weights": weights})
        same_plan(plan, tmp_path, {})
    ran(tmp_path, "coco")
    written = json.loads((tmp_path / "study.json").read_text())
    earlier = {**written, "weights": written["arms"]["coco"].pop("from")}
    (tmp_path / "study.json").write_text(json.dumps(earlier))
    same_plan(plan, tmp_path, {})
    with pytest.raises(TrainingError, match=r"a study with other arms\.coco;"):
        same_plan(plan.model_copy(update={"weights": "other.pt"}), tmp_path, {})
    elsewhere = {"line": {"folder": str(folder), "val": 0.3}}
    with pytest.raises(TrainingError, match=r"other arms\.ssl, sets\.line;"):
        same_plan(StudyPlan.model_validate(plan_of(folder, arms=arms, sets=elsewhere)), tmp_path, {})


def test_same_plan__other_content_under_the_same_name_is_another_study(folder: Path, tmp_path: Path) -> None:
    arms = {"scratch": {}, "coco": {"start": "coco"}}
    plan = StudyPlan.model_validate(plan_of(folder, arms=arms, weights="./coco.pt"))
    same_plan(plan, tmp_path, {})  # of an earlier version, which kept none
    same_plan(plan, tmp_path, {"sets.line": "a", "coco.pt": "b"})
    same_plan(plan, tmp_path, {"sets.line": "a"})
    begun = tmp_path / "line" / "seed0" / "coco-0.8" / "run"
    begun.mkdir(parents=True)
    same_plan(plan, tmp_path, {"coco.pt": "a"})  # no run has used it, what had begun with it goes
    assert not begun.exists()
    begun.mkdir()
    same_plan(plan.model_copy(update={"fractions": [0.4]}), tmp_path, {"coco.pt": "b"})
    assert not begun.exists()  # though this plan has no such run
    ran(tmp_path, "coco")
    with pytest.raises(TrainingError, match=r"a study with other content of coco\.pt, content of sets\.line;"):
        same_plan(plan, tmp_path, {"sets.line": "b", "coco.pt": "c"})
    without = plan.model_copy(update={"arms": {"scratch": plan.arms["scratch"]}})
    with pytest.raises(TrainingError, match=r"content of coco\.pt;"):
        same_plan(without, tmp_path, {"coco.pt": "c"})  # a run of an arm that is left out has used it
    with pytest.raises(TrainingError, match=r"other finetune\.steps \(2 → 3\);"):
        same_plan(plan.model_copy(update={"finetune": plan.finetune.model_copy(update={"steps": 3})}), tmp_path, {})


def test_keys_told__only_flags_become_keys() -> None:
    told = r"^sets\.a: /data--v2 has one group; correct group '\^\(\.\*\)--' or teacher_model \(teacher\)$"
    with pytest.raises(TrainingError, match=told), keys_told("sets.a"):
        raise TrainingError("/data--v2 has one group; correct --group '^(.*)--' or --teacher-model (--teacher)")


def test_pretrain_of__teacher_and_anchor_are_the_methods_own(folder: Path) -> None:
    arms = {"base": {"ssl": True}, "simclr": {"ssl": {"method": "simclr"}}, "again": {"ssl": {"epochs": 2}}}
    plan = StudyPlan.model_validate(plan_of(folder, pretrain={"method": "distill", "teacher": "t.pt"}, arms=arms))
    assert {name: plan.pretrain_of(arm).teacher for name, arm in plan.arms.items()} == {
        "base": "t.pt",
        "simclr": None,
        "again": "t.pt",
    }


def test_pretrain_of__what_nobody_named_is_as_in_edge_pretrain(folder: Path) -> None:
    arms = {"coco+ssl": {"start": "coco", "ssl": True}, "ssl": {"ssl": True}, "own": {"start": "coco", "ssl": {"lr": 0.01}}}
    plan = StudyPlan.model_validate(plan_of(folder, weights="coco.pt", arms=arms))
    found = [plan.pretrain_of(arm) for arm in plan.arms.values()]
    assert [(each.lr, each.interpolate) for each in found] == [(3e-4, 0.5), (1e-3, 0.5), (0.01, 0.5)]


def test_cells__seed_by_seed(folder: Path) -> None:
    plan = StudyPlan.model_validate(plan_of(folder, seeds=[0, 1]))
    assert [cell.seed for cell in cells_of(plan)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": {"coco": {"start": "coco"}}}, "starts from coco, but `weights` names no checkpoint"),
        ({"fractions": [1.5]}, "fractions.0: is 1.5; expected at most 1"),
        ({"arms": {"a": {"ssl": {"metod": "simclr"}}}}, "metod"),
        ({"sets": {}}, "sets: is empty; expected at least 1"),
        ({"arms": {"a/b": {}}}, "arms.a/b: expected letters, digits, - _ \\+ and ., at most 64"),
        ({"arms": {"a": {"ssl": True, "weights": "x.pt"}}}, "both `ssl` and `weights`"),
        ({"arms": {"a": {"ssl": {"method": "densee"}}}}, "unknown method 'densee'"),
        ({"arms": {"a": {"ssl": {"method": "distill"}}}}, "distill needs a teacher"),
        (
            {"pretrain": {"method": "dense", "anchor": 1.0}, "arms": {"a": {"ssl": {"method": "simclr", "anchor": 1.0}}}},
            r"arms\.a\.ssl: anchor holds",
        ),
        ({"arms": {"a": {"teacher": {"imgsz": 64}}}, "weights": "x.pt"}, "arm a: its `teacher` labels nothing"),
        (
            {"arms": {"a": {"pool": True, "teacher": {"imgsz": 64}}}},
            "arm a: its teacher starts from nothing; name the teacher's `weights`",
        ),
        (
            {"arms": {"a": {"pool": True, "teacher": {"imgsz": 64, "model": "yolo11s"}}}, "weights": "x.pt"},
            "arm a: its teacher starts from nothing",
        ),
        (
            {"arms": {"a": {"pool": True, "teacher": {"imgsz": 64, "model": "yolo77", "weights": "x.pt"}}}},
            "arm a: unknown model 'yolo77'",
        ),
        ({"arms": {"a": {"pool": True, "teacher": {"imgsz": 50}}}}, r"arms\.a\.teacher\.imgsz: .* multiple of 32"),
        ({"seeds": [0, 0, 1]}, "seeds: 0 comes twice"),
        ({"fractions": [0.5, 0.25, 0.5]}, "fractions: 0.5 comes twice"),
        ({"arms": {"a": {"ssl": "yes"}}}, "arms.a.ssl: expected true, false, or keys"),
        ({"finetune": {"batch": 1}}, "finetune.batch: is 1; expected at least 2"),
        ({"model": "yolo77"}, "study.yaml: unknown model 'yolo77'"),
        ({"finetune": {"lr": 7.5}}, "finetune.lr: is 7.5; expected at most 1"),
        ({"finetune": {"steps": True}}, "finetune.steps: is true; expected a whole number"),
        ({"imgsz": 32 * 10**30}, "imgsz: is 320+; expected at most 4096"),
        ({"seeds": [2**31]}, "seeds.0: is 2147483648; expected at most 2147483647"),
        ({"arms": {"a": {"start": "COCO"}}}, "arms.a.start: is 'COCO'; expected 'scratch' or 'coco'"),
        ({"arms": {"a": {"ssl": {"batch": "/"}}}}, "arms.a.ssl: batch: is '/'; expected a whole number"),
    ],
)
def test_load_plan__mistakes_are_told(folder: Path, tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(plan_of(folder, **changes)))
    with pytest.raises(TrainingError, match=told):
        load_plan(path)


def test_arm__a_block_that_changes_nothing_is_self_supervision() -> None:
    assert Arm.model_validate({"ssl": {}}).ssl is True
    assert Arm.model_validate({"ssl": False}).ssl is False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seeds: 2021-13-45", r"study\.yaml: not valid YAML: month must be in 1..12"),
        ("[" * 20000, r"study\.yaml: not valid YAML: maximum recursion depth"),
        ("a: 1\nb: [", r"study\.yaml:2: not valid YAML: expected the node content"),
        (
            "arms:\n  a: {}\n  a: {}\nseeds: [0]\nseeds: [1]",
            r"line 3: arms\.a is there already in line 2; line 5: seeds is there already in line 4",
        ),
        ("\x00", "not valid YAML"),
        ("", "study.yaml: is empty"),
        (None, "study.yaml cannot be read: No such file or directory; docs/study.md has an example"),
    ],
)
def test_load_plan__what_is_no_plan_is_told_in_a_line(tmp_path: Path, text: str | None, told: str) -> None:
    path = tmp_path / "study.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TrainingError, match=told) as raised:
        load_plan(path)
    assert "\n" not in str(raised.value)


def test_plan__of_the_documentation() -> None:
    example = (ROOT / "docs" / "study.md").read_text(encoding="utf-8").split("```yaml")[1].split("```")[0]
    plan = StudyPlan.model_validate(yaml.safe_load(example))
    ours, other = (plan.pretrain_of(plan.arms[name]) for name in ("coco+ssl", "coco+simclr"))
    assert (ours.method, ours.part) == ("cutpaste", "localizer")
    assert (other.method, other.part) == ("simclr", "neck"), "it does not train a head"
