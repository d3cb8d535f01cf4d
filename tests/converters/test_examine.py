from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.bundle_writer import manifest_bytes
from converters.calibration_file import calibration_bytes, key_of
from converters.examine import verify_bundle
from converters.model_files import ModelFile, rebatched, shipped_files
from converters.quantizer_passes import with_signed_activations
from runtime.bundle import Bundle
from runtime.errors import EdgeloopError
from runtime.files import sha256_of_file
from runtime.manifest import Manifest

CPU, STRONG, LARGER = "model.int8.cpu.onnx", "model.int8.tensorrt-strong.onnx", "model.int8.cpu.b2.onnx"


def rewrite(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest with the hashes of the files that are there, so that only a look into them can tell."""
    content["files"] = {path.name: sha256_of_file(path) for path in sorted(folder.iterdir()) if path.name != "manifest.json"}
    (folder / "manifest.json").write_bytes(manifest_bytes(Manifest.model_validate(content)))


@pytest.fixture(scope="module")
def every_form(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with INT8 files for CPUs, at batch 1 and 2, and for both typings of TensorRT."""
    folder = Path(shutil.copytree(bundle.path, tmp_path_factory.mktemp("forms") / "b"))
    int8 = onnx.load(folder / CPU)
    cpu = ModelFile("int8", "cpu", int8, folder / CPU)
    weak, strong = shipped_files(ModelFile.write(folder, "int8", "tensorrt", with_signed_activations(int8)))
    files = [cpu, weak, strong, rebatched(cpu, 2), rebatched(strong, 2)]
    content = bundle.manifest.model_dump()
    content["variants"] = [content["variants"][0], *(file.variant.model_dump() for file in files)]
    frames = content["calibration"]["frame_sha256"]
    key = key_of(sha256_of_file(folder / "model.fp32.onnx"), frames, bundle.preprocess)
    ranges = {file.path.name: file.model for file in (cpu, weak)}
    (folder / "calibration.json").write_bytes(calibration_bytes(key, frames, ranges))
    rewrite(folder, content)
    return Bundle.open(folder)


def test_verify_bundle__says_which_ranges_were_compared(every_form: Bundle) -> None:
    told = verify_bundle(every_form.path, None)["verified"]
    assert "6 graphs are valid ONNX with the inputs and outputs of the manifest: names, types and shapes" in told
    assert told[-1].startswith("the INT8 ranges belong to these graphs, frames and preprocessing: ")
    assert all(row.file in told[-1] for row in every_form.manifest.variants if row.precision == "int8")


def with_other_scale(model: onnx.ModelProto) -> None:
    """One activation's range grows by a percent."""
    constants = {item.name: item for item in model.graph.initializer}
    name = next(
        node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    )
    scale = numpy_helper.to_array(constants[name])
    constants[name].CopyFrom(numpy_helper.from_array((scale * np.float32(1.01)).astype(scale.dtype), name))


def without_a_quantizer(model: onnx.ModelProto) -> None:
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    dequantize = next(node for node in model.graph.node if quantize.output[0] in node.input)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == dequantize.output[0]:
                node.input[place] = quantize.input[0]
    for node in (quantize, dequantize):
        model.graph.node.remove(node)


def with_half_scores(model: onnx.ModelProto) -> None:
    scores = next(item for item in model.graph.output if item.name == "scores")
    maker = next(node for node in model.graph.node if "scores" in node.output)
    maker.output[list(maker.output).index("scores")] = "scores32"
    model.graph.node.append(helper.make_node("Cast", ["scores32"], ["scores"], to=TensorProto.FLOAT16))
    scores.type.tensor_type.elem_type = TensorProto.FLOAT16


def that_declares_fewer_boxes(model: onnx.ModelProto) -> None:
    boxes = next(item for item in model.graph.output if item.name == "boxes")
    boxes.type.tensor_type.shape.dim[1].dim_value = 3


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (STRONG, with_other_scale, "the INT8 ranges of .* are not those of calibration.json"),
        (LARGER, with_other_scale, "the INT8 ranges of .* are not those of calibration.json"),
        (LARGER, without_a_quantizer, "the INT8 ranges of .* are not those of calibration.json"),
        (CPU, with_other_scale, "is stale"),
        ("model.fp32.onnx", with_half_scores, r"scores float16 \[1, .*but the manifest says .*scores float \[1"),
        (LARGER, with_half_scores, r"scores float16 \[2, .*but the manifest says .*scores float \[2"),
        (LARGER, that_declares_fewer_boxes, r"is not valid ONNX: \[ShapeInferenceError\]"),
    ],
)
def test_verify_bundle__a_graph_that_is_not_what_the_manifest_says(
    every_form: Bundle, tmp_path: Path, name: str, change: Callable[[onnx.ModelProto], None], told: str
) -> None:
    folder = Path(shutil.copytree(every_form.path, tmp_path / "b"))
    model = onnx.load(folder / name)
    change(model)
    onnx.save(model, folder / name)
    rewrite(folder, every_form.manifest.model_dump())
    with pytest.raises(EdgeloopError, match=told):
        verify_bundle(folder, None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content["outputs"].update(top_k=7), r"but the manifest says .*boxes float \[1, 7, 4\]"),
        (lambda content: content["outputs"].update(embedding_dim=7), r"but the manifest says .*embedding float \[1, 7\]"),
        (lambda content: content["outputs"].update(batch=3), "has no fp32 model for any, batch 3"),
        (
            lambda content: content["preprocess"].update(size_wh=(96, 64)),
            r"but the manifest says images uint8 \[1, 64, 96, 3\]",
        ),
        (lambda content: content.update(calibration=None), "has INT8 files but no calibration in its manifest"),
        (lambda content: content["calibration"].update(key="0" * 64), "is stale"),
    ],
)
def test_verify_bundle__a_manifest_that_is_not_what_the_graphs_say(
    every_form: Bundle, tmp_path: Path, change: Callable[[dict[str, Any]], object], told: str
) -> None:
    folder = Path(shutil.copytree(every_form.path, tmp_path / "b"))
    content = every_form.manifest.model_dump()
    change(content)
    rewrite(folder, content)
    with pytest.raises(EdgeloopError, match=told):
        verify_bundle(folder, None)


def test_verify_bundle__int8_without_its_calibration_file(every_form: Bundle, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(every_form.path, tmp_path / "b"))
    (folder / "calibration.json").unlink()
    rewrite(folder, every_form.manifest.model_dump())
    with pytest.raises(EdgeloopError, match=r"has INT8 files but no calibration in its manifest and calibration\.json"):
        verify_bundle(folder, None)
