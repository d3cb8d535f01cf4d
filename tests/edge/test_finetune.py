from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml

from calibration.labels import Dataset, load_dataset
from converters.checkpoint import load_checkpoint, save_checkpoint
from converters.errors import CheckpointError
from edge.demo.scene import SimulatedScene
from edge.finetune import finetune
from edge.pretrain import pretrain
from edge.processes import Precision, detection_loss, launched_fabric
from edge.yolo import build_detector
from runtime.errors import SourceError
from tests.conftest import few_labels
from tests.edge.small_runs import finetune_request, pretrain_request, same_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return few_labels(tmp_path_factory.mktemp("data"), held_out=2)


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


def test_load_checkpoint__no_numbers_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    state = {key: value.clone() for key, value in loaded.state.items()}
    state["model.0.bn.running_mean"][0] = float("nan")
    save_checkpoint(tmp_path / "nan.pt", dataclasses.replace(loaded, state=state))
    with pytest.raises(CheckpointError, match=r"nan\.pt holds NaN or infinity in model\.0\.bn\.running_mean"):
        load_checkpoint(tmp_path / "nan.pt")


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


def test_finetune__loader_processes_give_the_same_run_again(data: Path, tmp_path: Path) -> None:
    first, second = (finetune(finetune_request(data, tmp_path / name, workers=2)).checkpoint for name in ("a", "b"))
    alone = finetune(finetune_request(data, tmp_path / "c")).checkpoint
    assert same_weights(first, second)
    assert not same_weights(first, alone), "each process draws for itself"


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


def test_finetune__images_on_both_sides_are_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(finetune_request(data, tmp_path / "fine", epochs=1))
    assert "trained on as well" not in capsys.readouterr().err
    both = tmp_path / "data.yaml"
    content = yaml.safe_load(data.read_text())
    both.write_text(yaml.safe_dump({**content, "path": str(data.parent), "val": content["train"]}))
    finetune(finetune_request(both, tmp_path / "both", epochs=1))
    assert re.search(
        r"^\d+ held-out images are trained on as well: every figure will be too good", capsys.readouterr().err, re.M
    )


def test_finetune__damaged_images_are_told_together_and_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = SimulatedScene.make(tmp_path / "data", labels=40, seed=0, imgsz=64).data
    first, second, third, *_ = (item.path for item in load_dataset(data).train)
    first.write_bytes(b"")
    second.write_bytes(second.read_bytes()[:200])
    finetune(finetune_request(data, tmp_path / "run", epochs=1))
    told = capsys.readouterr().err
    assert f"left out: {first} cannot be decoded" in told
    assert f"left out: {second} cannot be decoded as an image (200 bytes)" in told
    third.write_bytes(b"")
    with pytest.raises(SourceError, match=r"3 of 40 training images are damaged: .* \(0 bytes\).*; .* \(200 bytes\)"):
        finetune(finetune_request(data, tmp_path / "other", epochs=1))
    load_dataset(data).val[1].path.write_bytes(b"")
    with pytest.raises(SourceError, match=r"1 of 60 held-out images are damaged: .* \(0 bytes\)"):
        finetune(finetune_request(data, tmp_path / "other", epochs=1))
    assert not (tmp_path / "other").exists()
