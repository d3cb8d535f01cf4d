from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from converters.architecture import LAYERS, checked_architecture, read_architecture
from converters.checkpoint import (
    Checkpoint,
    build_architecture,
    build_model,
    bundled_architecture,
    import_ultralytics,
    save_checkpoint,
)
from converters.errors import CheckpointError, ConversionError
from converters.export_check import check_export
from converters.graph_cleanup import with_batch
from converters.imported import ImportOptions, load_model
from converters.onnx_from_torch import Detector, import_detector, torch_reference
from converters.sessions import open_session
from converters.ultralytics_pickle import StandIn, read_pickled, stand_ins
from tests.conftest import ROOT
from tests.converters.detectors import NAMES, noise, save_pickled, spread, spread_detector

FAMILIES = ["yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "yolov8s", "yolo11s", "yolo26s"]
END_TO_END = ("yolov10n", "yolo26n", "yolo26s")
RESNET = {
    "nc": 3,
    "backbone": [[-1, 1, "TorchVision", [512, "resnet18", "DEFAULT", True, 2, True]], [0, 1, "Index", [128, 6]]],
    "head": [[0, 1, "Index", [256, 7]], [0, 1, "Index", [512, 8]], [[1, 2, 3], 1, "Detect", ["nc"]]],
}
DETECT = [[0, 0, 0], 1, "Detect", ["nc"]]


@pytest.mark.parametrize("model", FAMILIES)
def test_import_detector__every_family_says_what_torch_says(model: str) -> None:
    imported = import_detector(Detector(spread_detector(model), model, NAMES, 96, {}), None)
    assert imported.nms is (model not in END_TO_END)
    parity = check_export(imported, noise((96, 96)))
    assert parity.boxes == 2 * 189  # all anchors at 96 px
    assert 0 < parity.max_box_px < 0.1  # spread-out boxes: nothing is equal by chance


@pytest.mark.parametrize("model", FAMILIES[:7])
def test_with_batch__rows_are_those_of_batch_1(model: str) -> None:
    imported = import_detector(Detector(spread_detector(model), model, NAMES, 64, {}), None)
    canvases = noise((64, 64), 3)
    names = ["boxes", "scores", "classes", "embedding"]
    single, batched = open_session(imported.graph), open_session(with_batch(imported.graph, 3))
    together = batched.run(names, {"images": np.concatenate(canvases)})
    for row, canvas in enumerate(canvases):
        for one, all_rows in zip(single.run(names, {"images": canvas}), together, strict=True):
            np.testing.assert_allclose(all_rows[row], one[0], atol=1e-4)


@pytest.mark.parametrize("model", ["yolov9t", "yolov10n", "yolo11n"])
def test_load_model__an_ultralytics_pickle_without_running_it(tmp_path: Path, model: str) -> None:
    imported = load_model(save_pickled(spread_detector(model), tmp_path / "w.pt"))
    assert (imported.name, imported.names, imported.preprocess.size_wh) == (model, NAMES, (96, 96))
    assert check_export(imported, noise((96, 96), 1)).max_score < 1e-4


def test_load_model__reading_a_pickle_needs_none_of_its_classes(tmp_path: Path) -> None:
    """Neither the file's code nor Ultralytics' runs while it is read."""
    save_pickled(spread_detector("yolo11n"), tmp_path / "w.pt")
    code = (
        "import sys; from pathlib import Path; from converters.checkpoint import read_tensors; read_tensors(Path('w.pt'));"
        "sys.exit('ultralytics' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=False, timeout=100)
    assert done.returncode == 0


def test_load_model__a_pickle_whose_classes_somebody_registered(tmp_path: Path) -> None:
    """Ultralytics registers its own once it has loaded a file; they would be built instead of stand-ins."""
    detector = spread_detector("yolo11n")
    path = save_pickled(detector, tmp_path / "w.pt", 64)
    with torch.serialization.safe_globals([type(detector)]):
        assert load_model(path).names == NAMES
        assert type(detector) in torch.serialization.get_safe_globals()


class Mark:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self._path),))


def test_load_model__a_pickle_with_code_of_its_own_is_refused_or_trusted(tmp_path: Path) -> None:
    detector = spread_detector("yolo11n")
    detector.extra = Mark(tmp_path / "mark")
    path = save_pickled(detector, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match=r"names posix.mkdir, .*--trust-pickle"):
        load_model(path)
    assert not (tmp_path / "mark").exists()
    imported = load_model(path, ImportOptions(trust_pickle=True))
    assert (tmp_path / "mark").exists()
    assert imported.lineage["pickle"] == "trusted"


def marking(path: Path) -> dict[str, object]:
    """An architecture whose activation, if it is evaluated, leaves a folder behind."""
    return {**RESNET, "activation": f"__import__('os').mkdir({str(path)!r})"}


@pytest.mark.parametrize("kind", ["yaml", "pickle", "ours"])
def test_load_model__a_layer_cannot_be_another_model(tmp_path: Path, kind: str) -> None:
    """Whole models are modules too; theirs is an architecture that nobody has checked."""
    spec = {**RESNET, "head": [[-1, 1, "DetectionModel", [marking(tmp_path / "mark")]], DETECT]}
    path = tmp_path / ("evil.yaml" if kind == "yaml" else "evil.pt")
    if kind == "yaml":
        path.write_text(yaml.safe_dump(spec))
    elif kind == "pickle":
        detector = build_model("yolo11n", 3)
        detector.yaml = spec
        save_pickled(detector, path)
    else:
        save_checkpoint(path, Checkpoint("evil", NAMES, {"model.0.weight": torch.zeros(1)}, architecture=spec))
    with pytest.raises(CheckpointError, match="has a layer 'DetectionModel'"):
        load_model(path)
    assert not (tmp_path / "mark").exists()


def test_build_model__takes_no_yaml_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("yolo11n.yaml", "yolo11.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(marking(tmp_path / "mark")))
    monkeypatch.chdir(tmp_path)
    assert len(build_model("yolo11n", 3).model) == 24
    assert not (tmp_path / "mark").exists()


def test_import_ultralytics__models_are_built_without_eval() -> None:
    import_ultralytics()
    from ultralytics.utils import SAFE_LOAD

    assert SAFE_LOAD is True


def test_read_architecture__every_detector_of_ultralytics() -> None:
    import_ultralytics()
    from ultralytics.utils import ROOT as ULTRALYTICS

    paths = [path for path in (ULTRALYTICS / "cfg/models").rglob("*.yaml") if "Detect," in path.read_text()]
    ours = [path for path in paths if "world" not in path.stem and "yoloe" not in path.stem]
    assert len(ours) > 20
    for path in ours:
        assert read_architecture(path)["nc"] == 80


def test_layers__are_layers_and_no_models() -> None:
    import_ultralytics()
    from ultralytics.nn import tasks

    for name in LAYERS - {"Silence"}:  # an old name of nn.Identity, which ultralytics translates
        layer = getattr(torch.nn, name[3:]) if name.startswith("nn.") else getattr(tasks, name)
        assert issubclass(layer, torch.nn.Module), name
        assert not issubclass(layer, tasks.BaseModel), name


def test_load_model__random_weights_say_so() -> None:
    imported = load_model(Path("yolo11n.yaml"), ImportOptions(imgsz=64))
    assert (imported.name, len(imported.names), imported.lineage["weights"]) == ("yolo11n", 80, "random")
    again = load_model(Path("yolo11n.yaml"), ImportOptions(imgsz=64))
    assert again.graph.SerializeToString(deterministic=True) == imported.graph.SerializeToString(deterministic=True)


def test_load_model__a_resnet_from_torchvision(tmp_path: Path) -> None:
    """A YAML of one's own, and a pickle of such a model; pretrained weights are not downloaded."""
    path = tmp_path / "resnet.yaml"
    path.write_text(yaml.safe_dump(RESNET))
    imported = load_model(path, ImportOptions(imgsz=64, names=NAMES))
    assert (imported.name, imported.names, imported.lineage["weights"]) == ("resnet", NAMES, "random")
    detector = spread(build_architecture(checked_architecture({**RESNET, "yaml_file": "resnet.yaml"}, "resnet.yaml"), 3))
    saved = save_pickled(detector, tmp_path / "resnet.pt", 64)
    for options in (ImportOptions(), ImportOptions(trust_pickle=True)):
        imported = load_model(saved, options)
        assert imported.name == "resnet"
        assert 0 < check_export(imported, noise((64, 64), 1)).max_box_px < 0.1


def test_save_checkpoint__keeps_an_architecture_of_its_own(tmp_path: Path) -> None:
    spec = checked_architecture(RESNET, "resnet")
    state = build_architecture(spec, 3).state_dict()
    save_checkpoint(tmp_path / "c.pt", Checkpoint("resnet", NAMES, state, 64, architecture=spec))
    assert load_model(tmp_path / "c.pt").name == "resnet"


def test_load_model__an_activation_of_its_own_is_not_lost(tmp_path: Path) -> None:
    """The same tensors with ReLU are another function: the pickle's YAML decides, not the shapes."""
    spec = {**bundled_architecture("yolo11n"), "activation": "nn.ReLU()"}
    detector = spread(build_architecture(checked_architecture(spec, "mine"), 3))
    imported = load_model(save_pickled(detector, tmp_path / "relu.pt", 64))
    assert "Relu" in {node.op_type for node in imported.graph.graph.node}
    expected = torch_reference(detector, imported.preprocess)(noise((64, 64))[0])
    np.testing.assert_allclose(imported.reference(noise((64, 64))[0]).scores, expected.scores, atol=1e-5)


def before_head(module: str, *arguments: object) -> dict[str, object]:
    return {"head": [[-1, 1, module, list(arguments)], DETECT]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "__import__('os').abort()"}, "activation"),
        ({"activation": "nn.Linear(8, 8)"}, "activation"),
        (before_head("check_requirements", "evil"), "has a layer 'check_requirements'"),
        (before_head("WorldModel", "yolov8s-world.yaml"), "has a layer 'WorldModel'"),
        (before_head("nn.functional.relu"), "has a layer 'nn.functional.relu'"),
        (before_head("nn.Upsample", "None", 2, "act"), "the argument 'act'"),  # a variable of ultralytics' parser
        (before_head("Conv", {"nc": 1}), "the argument {'nc': 1}"),
        (before_head("Conv", [[64]]), r"the argument \[\[64\]\]"),
        (before_head("Conv", 8193), "the argument 8193"),
        (before_head("Conv", float("nan")), "the argument nan"),
        (before_head("TorchVision", 64, "fasterrcnn_resnet50_fpn"), "the argument 'fasterrcnn_resnet50_fpn'"),
        ({"head": [[-1, 73, "Conv", [64]], DETECT]}, "must list its layers"),
        ({"head": [DETECT] * 257}, "must list its layers"),
        ({"scales": {"n": [6.1, 1.0, 1024]}}, "scales"),
        ({"scales": {"n": [1.0, 1.0, 8193]}}, "scales"),
        ({"width_multiple": 6.1}, "width_multiple 6.1"),
        ({"reg_max": 65}, "reg_max 65"),
        ({"end2end": "yes"}, "end2end 'yes'"),
        ({"nc": True}, "number of classes as nc"),
        ({"head": [[-1, 1, "Segment", ["nc", 32, 256]]]}, "ends in 'Segment'"),
        ({"head": "none"}, "must list its layers"),
        ({"nc": "many"}, "number of classes as nc"),
        ({"head": [[[1, 2, 9], 1, "Detect", ["nc"]]]}, "cannot be built"),
    ],
)
def test_load_model__a_yaml_that_cannot_be_built(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**RESNET, **change}))
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def test_load_model__what_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    torch.save({"model.24.m.0.weight": torch.zeros(1), "model.0.conv.weight": torch.zeros(1)}, tmp_path / "v5.pt")
    (tmp_path / "text.yaml").write_text("just text")
    (tmp_path / "bad.yaml").write_text("a: [")
    broken = spread_detector("yolo11n")
    with torch.no_grad():
        broken.model[0].conv.weight[0] = torch.nan
    save_pickled(broken, tmp_path / "nan.pt")
    cases = (
        (tmp_path / "v5.pt", ImportOptions(), "convert the ONNX with --head yolov5"),
        (tmp_path / "nan.pt", ImportOptions(), "NaN or infinity"),
        (tmp_path / "nan.pt", ImportOptions(trust_pickle=True), "NaN or infinity"),
        (tmp_path / "none.pt", ImportOptions(trust_pickle=True), "no such checkpoint"),
        (tmp_path / "text.yaml", ImportOptions(), "holds no architecture"),
        (tmp_path / "bad.yaml", ImportOptions(), "cannot be read as YAML"),
        (Path("yolo99x.yaml"), ImportOptions(), "no such file"),
        (Path("yolo11n.yaml"), ImportOptions(names=("a",)), "nc: 80"),
        (checkpoint, ImportOptions(names=("a",)), "1 class names were given"),
    )
    for path, options, message in cases:
        with pytest.raises(CheckpointError, match=message) as caught:
            load_model(path, options)
        assert "\n" not in str(caught.value)
    for options, message in (
        (ImportOptions(head="yolox"), "--head is for plain ONNX"),
        (ImportOptions(imgsz=100), "--imgsz 128"),
        (ImportOptions(imgsz=8224), "up to 8192, but got 8224; try --imgsz 8192"),
    ):
        with pytest.raises(ConversionError, match=message):
            load_model(checkpoint, options)


def test_load_model__names_in_a_list(tmp_path: Path) -> None:
    detector = spread_detector("yolo11n")
    detector.names = list(NAMES)
    path = save_pickled(detector, tmp_path / "w.pt", 64)
    for options in (ImportOptions(), ImportOptions(trust_pickle=True)):
        assert load_model(path, options).names == NAMES


def stand_in(**content: object) -> StandIn:
    made = StandIn()
    made.__setstate__(content)
    return made


def pickled(module: StandIn) -> StandIn:
    return stand_in(yaml={}, _modules={"model": module})


def test_read_pickled__a_shared_module_has_all_its_names(tmp_path: Path) -> None:
    """As the one PReLU of all layers of a YOLO with that activation."""
    shared = stand_in(_parameters={"weight": 1, "bias": None}, _buffers={"seen": 2}, _non_persistent_buffers_set={"seen"})
    module = stand_in(_modules={"0": shared, "1": stand_in(_modules={"act": shared})})
    assert dict(read_pickled(tmp_path / "w.pt", pickled(module)).state) == {"model.0.weight": 1, "model.1.act.weight": 1}


def test_read_pickled__modules_without_end(tmp_path: Path) -> None:
    itself = stand_in()
    itself.__setstate__({"_modules": {"a": itself, "b": itself}})
    doubling = stand_in(_parameters={"weight": 1})
    for _ in range(18):
        doubling = stand_in(_modules={"a": doubling, "b": doubling})
    for module in (itself, doubling):
        with pytest.raises(CheckpointError, match="without end"):
            read_pickled(tmp_path / "w.pt", pickled(module))


def test_stand_ins__a_pickle_of_the_yolov5_repository(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"--head yolov5"):
        stand_ins(tmp_path / "v5.pt", ["models.yolo.DetectionModel", "torch.nn.modules.conv.Conv2d"])


@pytest.mark.data
def test_load_model__the_anchor_head_of_real_yolov5_weights(data_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="anchor head"):
        load_model(data_dir / "weights" / "yolov5n_coco_v6.0_state_fp16.pt")
