from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converters.errors import ConversionError
from converters.export_check import check_export
from converters.imported import ImportOptions, load_model
from runtime.errors import EdgeloopError
from runtime.images import list_images, read_image
from tests.converters.detectors import NAMES, TinyHead, export, noise, ultralytics_export

SIDE = 96


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ultralytics' layout, two kilobytes of weights."""
    return export(TinyHead("ultralytics", SIDE), tmp_path_factory.mktemp("tiny") / "tiny.onnx", SIDE)


@pytest.mark.parametrize(
    ("head", "options"),
    [
        ("ultralytics", {}),
        ("ultralytics-end2end", {}),
        ("yolov5", {}),
        ("yolov5", {"maps": True}),
        ("yolox", {"focus": True}),
        ("yolox-decoded", {"focus": True}),
        ("yolox", {}),
    ],
)
def test_import_onnx__every_head_is_recognised_and_decoded(tmp_path: Path, head: str, options: dict[str, bool]) -> None:
    path = export(TinyHead(head, SIDE, **options), tmp_path / "m.onnx", SIDE, opset=11 if head == "yolox" else 17)
    imported = load_model(path, ImportOptions(names=NAMES))
    assert imported.lineage["head"] == f"{head}, recognised"
    assert (imported.preprocess.color, imported.nms) == ("bgr" if "yolox" in head else "rgb", head != "ultralytics-end2end")
    parity = check_export(imported, noise((SIDE, SIDE)))
    assert parity.boxes >= 30
    assert max(parity.max_box_px, parity.max_score) < 1e-3
    told = load_model(path, ImportOptions(names=NAMES, head=head))
    assert told.lineage["head"] == head
    assert [item.version for item in imported.graph.opset_import] == [17]


@pytest.mark.parametrize(
    ("model", "options", "head"),
    [
        ("yolov8n", {}, "ultralytics"),  # opset 18 by its own choice
        ("yolo12n", {"dynamic": True, "opset": 20}, "ultralytics"),
        ("yolo26n", {"nms": False, "opset": 17}, "ultralytics-end2end"),
        ("yolov10n", {"nms": False, "opset": 19}, "ultralytics-end2end"),
    ],
)
def test_import_onnx__ultralytics_own_exports(tmp_path: Path, model: str, options: dict[str, object], head: str) -> None:
    path = ultralytics_export(model, tmp_path / "m.onnx", SIDE, **options)
    imported = load_model(path, ImportOptions(imgsz=SIDE))
    assert (imported.names, imported.lineage["head"]) == (NAMES, f"{head}, recognised")
    assert check_export(imported, noise((SIDE, SIDE))).boxes > 300


class BestByTopK(TinyHead):
    """An end-to-end head whose graph has no maximum over the classes."""

    def _best(self, rows: torch.Tensor) -> torch.Tensor:
        scores, label = (item[..., 0] for item in rows[..., 4:].topk(1, dim=-1))
        best, index = scores.topk(20, dim=1)
        boxes = rows[..., :4].gather(1, index[..., None].expand(-1, -1, 4))
        return torch.cat([boxes, best[..., None], label.gather(1, index)[..., None].float()], -1)


class OneBox(TinyHead):
    """An end-to-end head that gives its best box only."""

    def _best(self, rows: torch.Tensor) -> torch.Tensor:
        return super()._best(rows)[:, :1]


def test_import_onnx__an_end_to_end_head_of_one_box(tmp_path: Path) -> None:
    path = export(OneBox("ultralytics-end2end", SIDE), tmp_path / "m.onnx", SIDE)
    assert check_export(load_model(path), noise((SIDE, SIDE))).canvases == 2


def test_import_onnx__an_end_to_end_graph_says_how_many_classes(tmp_path: Path) -> None:
    tiny = export(TinyHead("ultralytics-end2end", SIDE, 5), tmp_path / "tiny.onnx", SIDE)
    assert load_model(tiny).names == tuple(f"class_{index}" for index in range(5))
    real = ultralytics_export("yolov10n", tmp_path / "v10.onnx", SIDE, nms=False, opset=17, dynamic=True)
    for path, count in ((tiny, 5), (real, 3)):
        for wrong in (count - 1, count + 1):
            with pytest.raises(ConversionError, match=f"{count} classes, but {wrong} names"):
                load_model(path, ImportOptions(imgsz=SIDE, names=tuple("abcdefgh"[:wrong])))


def test_import_onnx__an_end_to_end_graph_that_does_not_say(tmp_path: Path) -> None:
    path = export(BestByTopK("ultralytics-end2end", SIDE), tmp_path / "m.onnx", SIDE)
    with pytest.raises(ConversionError, match="--names a,b,c"):
        load_model(path)
    assert check_export(load_model(path, ImportOptions(names=NAMES)), noise((SIDE, SIDE))).boxes >= 30
    with pytest.raises(ConversionError, match=r"gives class number \d, but 1 classes are named"):
        check_export(load_model(path, ImportOptions(names=NAMES[:1])), noise((SIDE, SIDE)))


def changed(path: Path, change: Callable[[onnx.ModelProto], None], name: str = "changed.onnx") -> Path:
    model = onnx.load(path)
    change(model)
    (path.parent / name).write_bytes(model.SerializeToString())
    return path.parent / name


def add_node(kind: str, domain: str = "") -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.node.append(helper.make_node(kind, ["images"], ["x"], domain=domain))

    return change


def poison(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(model.graph.initializer[0]).copy()
    values.flat[0] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, model.graph.initializer[0].name))


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    tensor.ClearField("raw_data")


def half(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0]).astype(np.float16), "stem.weight")
    )


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("size", TensorProto.FLOAT, [2]))


def bytes_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8


def batch_of_four(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4


def side_of(height: int) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = height

    return change


def text_output(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", [model.graph.output[0].name], ["text"], to=TensorProto.STRING))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("text", TensorProto.STRING, [1, 7, 189]))


def newest(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 22
    model.graph.node.append(helper.make_node("Gelu", [model.graph.node[-1].output[0]], ["unused"], "gelu"))


def segmentation(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="task", value="segment")


def two_names(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="names", value="{0: 'a', 1: 'b'}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_node("NonMaxSuppression"), "does NMS inside the graph"),
        (add_node("EfficientNMS_TRT"), "does NMS inside the graph"),
        (add_node("BatchedNMSDynamic_TRT", "trt.plugins"), "does NMS inside the graph"),
        (add_node("DequantizeLinear"), "quantised already"),
        (add_node("Plugin", "mine"), "Plugin of mine"),
        (poison, "NaN or infinity in 'stem.weight'"),
        (external, "external data"),
        (half, "FP16 weights"),
        (second_input, "2 inputs"),
        (bytes_input, "takes UINT8, expected FLOAT"),
        (batch_of_four, "export it with batch 1"),
        (side_of(1 << 40), "takes 96×1099511627776, expected multiples of 32 up to 8192"),
        (side_of(8224), "takes 96×8224"),
        (side_of(-32), "takes 96×-32"),
        (side_of(100), "takes 96×100"),
        (text_output, r"outputs object \(1, 7, 189\), expected one float"),
        (newest, "Gelu does not exist at opset 17"),
        (segmentation, "task 'segment'"),
        (two_names, "3 classes, but 2 names"),
    ],
)
def test_import_onnx__refuses(tiny: Path, change: Callable[[onnx.ModelProto], None], message: str) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        load_model(changed(tiny, change))
    assert "\n" not in str(caught.value)
    assert "changed.onnx" in str(caught.value)


def test_import_onnx__names_that_are_no_literal_are_not_run(tiny: Path, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        model.metadata_props.add(key="names", value=f"{{0: open({str(tmp_path / 'mark')!r}, 'w')}}")

    assert load_model(changed(tiny, change)).names == ("class_0", "class_1", "class_2")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ImportOptions(head="yolov7"), "unknown head 'yolov7'; known are ultralytics, "),
        (ImportOptions(head="yolov5"), "cannot be yolov5"),
        (ImportOptions(imgsz=128), "fixed at 96×96"),
        (ImportOptions(names=("a",)), "3 classes, but 1 names"),
    ],
)
def test_import_onnx__wrong_options(tiny: Path, options: ImportOptions, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        load_model(tiny, options)


@pytest.mark.parametrize("side", [1 << 70, 8224, -32, 100])
def test_import_onnx__an_open_size_takes_only_a_side_that_can_be_deployed(tmp_path: Path, side: int) -> None:
    path = export(TinyHead("ultralytics", SIDE), tmp_path / "open.onnx", SIDE, dynamic=True)
    with pytest.raises(ConversionError, match=f"a multiple of 32 up to 8192, but got {side}; try --imgsz"):
        load_model(path, ImportOptions(imgsz=side))


def test_import_onnx__what_is_no_detector(tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "text.onnx").write_text("this is text")
    (tmp_path / "empty.onnx").write_bytes(b"")
    export(TinyHead("yolov5 shares", SIDE), tmp_path / "shares.onnx", SIDE)
    shapes = {"images": [1, 3, 96, 96], "y": [1, 3, 1, 1]}
    model_input, output = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    graph = helper.make_graph([helper.make_node("GlobalAveragePool", ["images"], ["y"])], "pool", [model_input], [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "pool.onnx")
    open_size = changed(tiny, lambda model: model.graph.input[0].type.tensor_type.shape.dim[2].Clear(), "open.onnx")
    open_size.replace(tmp_path / "open.onnx")
    for name, message in (
        ("none.onnx", "no such file"), ("text.onnx", "no ONNX file"), ("empty.onnx", "no ONNX file"), ("pool.onnx", "only detectors"),
        ("shares.onnx", "not recognised; name it with --head"), ("open.onnx", "like --imgsz 640"),
    ):  # fmt: skip
        with pytest.raises(ConversionError, match=message):
            load_model(tmp_path / name)


def test_import_onnx__tensors_that_have_our_names(tiny: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        renamed = {"images": "x", model.graph.node[0].output[0]: "boxes", model.graph.output[0].name: "images"}
        for node in model.graph.node:
            for field in (node.input, node.output):
                field[:] = [renamed.get(name, name) for name in field]
        model.graph.input[0].name, model.graph.output[0].name = "x", "images"

    imported = load_model(changed(tiny, change))
    assert check_export(imported, noise((SIDE, SIDE), 1)).max_score < 1e-4


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 7)), min_size=1, max_size=4))
def test_import_onnx__flipped_bits_give_a_sentence_or_a_model(tiny: Path, flips: list[tuple[float, int]]) -> None:
    data = bytearray(tiny.read_bytes())
    for place, bit in flips:
        data[min(int(place * len(data)), len(data) - 1)] ^= 1 << bit
    (tiny.parent / "fuzz.onnx").write_bytes(data)
    try:
        load_model(tiny.parent / "fuzz.onnx")
    except EdgeloopError as error:
        assert "fuzz.onnx" in str(error)


@pytest.mark.data
def test_import_onnx__yolox_nano_as_megvii_exported_it(data_dir: Path) -> None:
    imported = load_model(data_dir / "weights" / "bigisland_yolox_nano.onnx")
    assert (imported.preprocess.size_wh, imported.preprocess.color, imported.preprocess.scale) == ((416, 416), "bgr", 1.0)
    assert imported.lineage["head"] == "yolox, recognised"
    canvas = imported.preprocess.buffer()
    imported.preprocess.letterbox(read_image(list_images(data_dir / "coco_val2017" / "images")[0]), canvas[0])
    assert check_export(imported, [canvas]).boxes == 1000
    assert imported.reference(canvas).scores.max() > 0.5  # it sees something: colour and scale are right
