from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from converters.checkpoint import Checkpoint, build_model, detector_from_checkpoint, load_checkpoint, save_checkpoint
from converters.errors import CheckpointError
from converters.onnx_from_torch import Detector, import_detector
from converters.resnet import RESNET_MODELS, resnet_weights
from edge.trunk import Trunk
from edge.yolo import build_detector, inject, part_keys
from tests.converters.detectors import NAMES, spread

MODEL = RESNET_MODELS[0]


def resnet18() -> Any:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network.eval()


def as_torchvision(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return state


def as_moco(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """MoCo's and many of torch.hub's: a prefix, other networks beside, and numbers."""
    encoder = {f"module.encoder_q.{key}": value for key, value in state.items()}
    return {"epoch": 200, "arch": "resnet18", "state_dict": {**encoder, "module.queue": torch.zeros(128, 16)}}


def as_vissl(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """VISSL's checkpoints, which have no counters."""
    trunk = {f"_feature_blocks.{key}": value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    model = {"trunk": trunk, "heads": {"0.clf.weight": torch.zeros(10, 512)}}
    return {"phase_idx": 1, "classy_state_dict": {"base_model": {"model": model, "meta": {}}}}


@pytest.mark.parametrize("layout", [as_torchvision, as_moco, as_vissl])
def test_load_checkpoint__a_resnet_gives_the_stages_that_torchvision_gives(layout: Any, tmp_path: Path) -> None:
    network = resnet18()
    torch.save(layout(network.state_dict()), tmp_path / "resnet.pth")
    found = load_checkpoint(tmp_path / "resnet.pth")
    assert (found.model, found.kind, found.names) == (MODEL, "backbone", ())
    detector = build_detector(MODEL, ["a"], 1)
    told = inject(detector, found, MODEL)
    assert told.taken == told.wanted == len([key for key in network.state_dict() if not key.startswith("fc.")])
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        maps = Trunk(detector, MODEL, "backbone").eval()(images)
        early = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        expected = network.layer4(network.layer3(network.layer2(network.layer1(early))))
    torch.testing.assert_close(maps[0], expected)


def test_load_checkpoint__other_resnets(tmp_path: Path) -> None:
    torch.save(torchvision.models.resnet34(weights=None).state_dict(), tmp_path / "34.pth")
    with pytest.raises(CheckpointError, match="6 blocks in its third stage"):
        load_checkpoint(tmp_path / "34.pth")
    torch.save(resnet18().state_dict(), tmp_path / "18.pth")
    with pytest.raises(CheckpointError, match="holds the backbone of yolo11n-resnet18, but --model says yolo11n"):
        load_checkpoint(tmp_path / "18.pth", "yolo11n")


def test_load_checkpoint__a_resnet_with_more_than_ours_has_is_refused(tmp_path: Path) -> None:
    state = {**resnet18().state_dict(), "layer1.0.se.fc1.weight": torch.zeros(4)}
    torch.save(state, tmp_path / "se.pth")
    with pytest.raises(CheckpointError, match=r"it has layer1.0.se.fc1.weight"):
        load_checkpoint(tmp_path / "se.pth")


@pytest.mark.parametrize("name", ["layers.0.conv1.weight", "encoder.layer.conv1.weight", "conv1.weight\n", "bn1", "layer4"])
def test_load_checkpoint__what_looks_like_a_resnet_and_is_none(name: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(4)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="has no YOLO detection head"):
        load_checkpoint(tmp_path / "x.pth")


def test_resnet_weights__mappings_in_each_other_are_looked_at_once() -> None:
    inner: dict[Any, Any] = {}
    for _ in range(12):
        inner = dict.fromkeys(range(50), inner)
    inner[0] = inner
    assert resnet_weights(inner) is None


@pytest.mark.parametrize("name", RESNET_MODELS)
def test_build_model__every_depth(name: str, tmp_path: Path) -> None:
    detector = build_model(name, 2)
    state = detector.state_dict()
    assert {key.split(".")[1] for key in part_keys(name, state, "backbone")} == {"0"}
    assert Trunk(detector, name, "neck").strides == [8, 16, 32]
    save_checkpoint(tmp_path / "d.pt", Checkpoint(name, ("a", "b"), state, 64))
    assert len(detector_from_checkpoint(load_checkpoint(tmp_path / "d.pt")).state_dict()) == len(state)
    torch.save(state, tmp_path / "bare.pt")
    assert load_checkpoint(tmp_path / "bare.pt").model == name


def test_import_detector__a_resnet_is_exported_as_it_is() -> None:
    """The export compares the graph with torch and refuses one that differs."""
    imported = import_detector(Detector(spread(build_detector(MODEL, NAMES, 1)), MODEL, NAMES, 96, {}), None)
    assert imported.graph.graph.node
