from __future__ import annotations

from pathlib import Path

import pytest
import torch

from converters.architecture import MODEL_NAMES
from converters.checkpoint import Checkpoint, build_model
from converters.errors import CheckpointError
from edge.trunk import Trunk
from edge.yolo import FAMILIES, build_detector, family_of, inject, part_keys


@pytest.mark.parametrize("family", list(FAMILIES))
def test_family__table_fits_the_architecture(family: str) -> None:
    name = next(model for model in MODEL_NAMES if model.startswith(family))
    model = build_model(name, 3)
    assert len(model.model) == family_of(name).layers
    (features,) = Trunk(model, name, "backbone")(torch.zeros(1, 3, 64, 64))
    assert features.shape[2:] == (2, 2)  # P5, stride 32


def backbone_of(model: str, seed: int) -> Checkpoint:
    state = build_detector(model, ["object"], seed).state_dict()
    return Checkpoint(model, (), {key: state[key] for key in part_keys(model, state, "backbone")}, kind="backbone")


def test_inject__a_backbone_is_counted_and_moved() -> None:
    source, target = backbone_of("yolo11n", 1), build_detector("yolo11n", ["a", "b"], 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    told = inject(target, source, "yolo11n")
    assert (told.taken, told.wanted, told.left_fresh) == (240, 240, 259)
    assert str(told) == "240 of 240 tensors, 259 left fresh (neck and head, not pretrained)"
    for key, value in target.state_dict().items():
        torch.testing.assert_close(value, source.state[key] if key in source.state else before[key])


def test_inject__backbone_and_neck_are_all_but_the_head() -> None:
    state = build_detector("yolo11n", ["object"], 1).state_dict()
    source = Checkpoint("yolo11n", (), {key: state[key] for key in part_keys("yolo11n", state, "neck")}, kind="neck")
    target = build_detector("yolo11n", ["a", "b"], 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    told = inject(target, source, "yolo11n")
    assert told.taken == told.wanted == len(source.state)
    assert told.reason == "head, not pretrained"
    for key, value in target.state_dict().items():
        torch.testing.assert_close(value, before[key] if key.startswith("model.23.") else state[key])


def test_inject__other_classes_are_explained() -> None:
    state = build_detector("yolo11n", [str(i) for i in range(80)], 1).state_dict()
    told = inject(build_detector("yolo11n", ["a", "b"], 2), Checkpoint("yolo11n", tuple(map(str, range(80))), state), "yolo11n")
    assert 0 < told.left_fresh < 70
    assert told.taken + told.left_fresh == told.wanted == 499
    assert told.reason == "class branch, of 80 other classes"


@pytest.mark.parametrize("case", ["architecture", "missing", "shape", "size"])
def test_inject__what_cannot_be_explained_is_refused(case: str) -> None:
    source = backbone_of("yolo11n", 1)
    state = dict(source.state)
    if case == "missing":
        state.popitem()
    if case == "shape":
        state["model.0.conv.weight"] = torch.zeros(8, 3, 3, 3)
    model = {"architecture": "yolov8n"}.get(case, "yolo11n")
    if case == "size":
        state, model = dict(backbone_of("yolo11s", 1).state), "yolo11n"
    target = build_detector("yolo11n", ["a"], 2)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"name the same architecture|another architecture or incomplete"):
        inject(target, Checkpoint(model, (), state, kind="backbone"), "yolo11n")
    for key, value in target.state_dict().items():
        torch.testing.assert_close(value, before[key])  # nothing half-injected


def test_build_detector__seeded() -> None:
    first, again, other = (build_detector("yolo11n", ["a"], seed).state_dict() for seed in (1, 1, 2))
    key = "model.0.conv.weight"
    torch.testing.assert_close(first[key], again[key])
    assert not torch.equal(first[key], other[key])


def test_family_of__unknown() -> None:
    with pytest.raises(CheckpointError, match="known families are yolov5"):
        family_of("resnet")


def test_save_checkpoint__loads_as_plain_tensors(tmp_path: Path) -> None:
    from converters.checkpoint import load_checkpoint, save_checkpoint

    save_checkpoint(tmp_path / "b.pt", backbone_of("yolo11n", 1))
    assert load_checkpoint(tmp_path / "b.pt").kind == "backbone"
