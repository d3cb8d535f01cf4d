from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from calibration.accuracy import Accuracy
from converters.checkpoint import Checkpoint, load_checkpoint
from converters.convert import release
from converters.request import ConvertRequest
from edge.demo.scene import SimulatedScene
from edge.errors import RefreshError
from edge.finetune import finetune
from edge.finetune_request import FinetuneRequest
from edge.pretrain import pretrain
from edge.pretrain_request import PretrainRequest
from edge.refresh.gate import Verdict, compare
from edge.refresh.journal import Journal
from edge.refresh.steps import RefreshRequest, _backbone_of, _further, refresh
from runtime.bundle import Bundle


def accept(old: Accuracy, new: Accuracy) -> Verdict:
    """A gate that lets everything pass."""
    return Verdict(old, new, True, "accepted")


def accuracy(map50_95: float, f1: float) -> Accuracy:
    return Accuracy(map50_95, 0.5, f1, 0.5, 0.5, 0.25, 20)


@pytest.mark.parametrize(
    ("new", "publish", "reason"),
    [
        ((0.50, 0.70), True, "not worse"),
        ((0.50, 0.695), True, "not worse"),
        ((0.48, 0.90), False, "mAP50-95 falls by 0.020"),
        ((0.499, 0.90), False, "mAP50-95 falls by 0.001"),
        ((0.90, 0.68), False, "F1 falls by 0.020"),
        ((0.0, 0.0), False, "mAP50-95 falls by 0.500, more than 0; F1 falls by 0.700"),
    ],
)
def test_compare(new: tuple[float, float], publish: bool, reason: str) -> None:
    verdict = compare(accuracy(0.50, 0.70), accuracy(*new))
    assert verdict.publish is publish
    assert reason in verdict.reason


def test_journal__runs_a_step_once(tmp_path: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        journal = Journal(tmp_path)
        assert journal.step("a", {"x": "1"}, lambda: {"n": calls.append(1) or len(calls)}) == {"n": 1}  # type: ignore[func-returns-value]
    assert calls == [1]
    with pytest.raises(RefreshError, match="another x"):
        Journal(tmp_path).step("a", {"x": "2"}, dict)
    (tmp_path / "journal.json").write_text("{")
    with pytest.raises(RefreshError, match="is damaged"):
        Journal(tmp_path)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> RefreshRequest:
    """A first release of barely trained weights, ready to be refreshed."""
    from tests.conftest import fill_pool

    root = tmp_path_factory.mktemp("released")
    data = SimulatedScene.make(root / "data", labels=8, seed=0, imgsz=64).data
    (root / "data" / "val.txt").write_text("\n".join((root / "data" / "val.txt").read_text().splitlines()[:4]) + "\n")
    fill_pool(root / "pool", 16)
    backbone = pretrain(PretrainRequest(root / "pool", root / "ssl", imgsz=64, batch=8, epochs=1))
    detector = finetune(FinetuneRequest(data, root / "tune", init=(backbone,), imgsz=64, batch=4, epochs=1)).checkpoint
    release(ConvertRequest(detector, root / "pool", 64, frames=4), root / "bundles", lambda _: None)
    return RefreshRequest(
        root / "bundles", root / "pool", data, backbone, detector, root / "refresh",
        pretrain_epochs=1, tune_epochs=1, imgsz=64, batch=4,
    )  # fmt: skip


@pytest.fixture
def request_(released: RefreshRequest, tmp_path: Path) -> RefreshRequest:
    bundles = shutil.copytree(released.bundles, tmp_path / "bundles", symlinks=True)
    return replace(released, bundles=Path(bundles), out=tmp_path / "refresh")


def test_refresh__publishes_what_is_not_worse_and_is_not_repeated(request_: RefreshRequest) -> None:
    before = Bundle.open(request_.bundles / "current")
    done = refresh(request_, accept)
    current = Bundle.open(request_.bundles / "current")
    assert current.path == done.bundle != before.path
    assert current.manifest.lineage["refreshed_from"] == before.digest
    steps = json.loads((request_.out / "journal.json").read_text())
    assert list(steps) == ["begin", "pretrain", "tune", "convert", "compare", "publish"]
    written = (request_.out / "tune" / "detector.pt").stat().st_mtime_ns
    assert refresh(request_, accept) == done  # a second start finds everything done
    assert (request_.out / "tune" / "detector.pt").stat().st_mtime_ns == written


RECIPE = {
    "ssl": "cutpaste", "ssl_batch": "16", "ssl_lr": "0.0003", "ssl_upright": "True", "ssl_anchor": "0.0",
    "ssl_average": "False", "ssl_interpolate": "0.5", "ssl_chunk": "8", "ssl_precision": "bf16-mixed",
    "ssl_activation_checkpointing": "True",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "lineage", "expected"),
    [
        ("backbone", {}, ("simclr", "backbone", 64, 1e-3, False, 0.0, 1.0)),
        ("localizer", RECIPE, ("cutpaste", "localizer", 16, 3e-4, True, 0.0, 0.5)),
        ("localizer", RECIPE | {"ssl_from_scratch": "True"}, ("cutpaste", "localizer", 16, 3e-4, True, 0.0, 1.0)),
        ("neck", RECIPE | {"ssl": "dense", "ssl_anchor": "10.0"}, ("dense", "neck", 16, 3e-4, True, 10.0, 0.5)),
        ("neck", {"ssl": "distill", "ssl_anchor": "10.0"}, ("simclr", "neck", 64, 1e-3, False, 0.0, 1.0)),
        ("neck", {"ssl": "distill", "ssl_lr": "0.004"}, ("simclr", "neck", 64, 1e-3, False, 0.0, 1.0)),
        ("neck", {"ssl": "distill", "ssl_lr": "0.0003"}, ("simclr", "neck", 64, 3e-4, False, 0.0, 1.0)),
    ],
)
def test_refresh__the_last_recipe_goes_on(
    released: RefreshRequest,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    lineage: dict[str, str],
    expected: tuple[object, ...],
) -> None:
    last = Checkpoint("yolo11n", (), {}, 192, kind, lineage)
    found = _further(released, last, released.out, 5.0)
    assert (found.method, found.part, found.batch, found.lr, found.upright, found.anchor, found.interpolate) == expected
    assert (found.imgsz, found.until_s, found.init) == (192, 5.0, released.backbone)
    memory = (found.chunk, found.precision, found.activation_checkpointing)
    assert memory == ((8, "bf16-mixed", True) if "ssl_chunk" in lineage else (0, "32-true", False))
    assert ("has no teacher" in capsys.readouterr().err) == (lineage.get("ssl") == "distill")


def test_refresh__a_recipe_that_is_damaged(released: RefreshRequest) -> None:
    for lineage in ({"ssl_batch": "many"}, {"ssl_precision": "8-false"}):
        with pytest.raises(RefreshError, match=r"does not say how it was made .*; pretrain it anew"):
            _further(released, Checkpoint("yolo11n", (), {}, 192, "backbone", lineage), released.out, 5.0)


def test_refresh__neck_and_head_of_the_release_are_kept(released: RefreshRequest) -> None:
    learnt = load_checkpoint(released.backbone)
    assert learnt.kind == "localizer"
    backbone = _backbone_of(learnt)
    assert (backbone.kind, len(backbone.state)) == ("backbone", 240)
    assert all(int(key.split(".")[1]) <= 10 for key in backbone.state)


def test_refresh__what_proves_nothing_changes_nothing(request_: RefreshRequest) -> None:
    before = Bundle.open(request_.bundles / "current")
    done = refresh(request_)  # both models have barely been trained and find nothing
    assert not done.verdict.publish
    assert done.bundle == before.path
    assert "nothing is proved" in done.verdict.reason
    assert Bundle.open(request_.bundles / "current").digest == before.digest
    assert sorted(path.name for path in request_.bundles.iterdir()) == sorted([before.path.name, "current"])


def test_refresh__a_release_made_meanwhile_is_not_overwritten(request_: RefreshRequest) -> None:
    def gate(old: Accuracy, new: Accuracy) -> Verdict:
        release(ConvertRequest(request_.detector, imgsz=64, confidence=0.5), request_.bundles, lambda _: None)
        return accept(old, new)

    with pytest.raises(RefreshError, match="refresh again, in another --out"):
        refresh(request_, gate)


def test_refresh__an_empty_pool_may_be_filled_and_tried_again(request_: RefreshRequest, tmp_path: Path) -> None:
    from tests.conftest import fill_pool

    fill_pool(tmp_path / "pool", 0)
    with pytest.raises(RefreshError, match="is empty"):
        refresh(replace(request_, pool=tmp_path / "pool"))
    fill_pool(tmp_path / "pool", 8)
    assert refresh(replace(request_, pool=tmp_path / "pool"), accept).verdict.publish


def test_refresh__swapped_checkpoints(request_: RefreshRequest) -> None:
    with pytest.raises(RefreshError, match="were the two swapped"):
        refresh(replace(request_, backbone=request_.detector, detector=request_.backbone))


def test_refresh__nothing_released_or_no_checkpoint(request_: RefreshRequest, tmp_path: Path) -> None:
    with pytest.raises(RefreshError, match="no `current` release"):
        refresh(replace(request_, bundles=tmp_path / "none"))
    with pytest.raises(RefreshError, match="no such checkpoint"):
        refresh(replace(request_, detector=tmp_path / "none.pt"))
