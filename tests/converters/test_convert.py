from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import onnx
import pytest
import yaml

from converters.convert import convert, parity_table, release
from converters.errors import CheckpointError, ConversionError
from converters.examine import verify_bundle
from converters.gate import Bars
from converters.request import ConvertRequest
from runtime.bundle import Bundle
from runtime.errors import EdgeloopError, PoolError
from runtime.sources.simulated import CLASS_NAMES, Line
from tests.conftest import few_stretches, fill_pool

NO_BARS = Bars(agreement=0, at_threshold=0, mean_iou=0, score_shift=1, boxes=0, f1_drop=1, map_drop=1)


def test_convert__records_what_it_did(bundle: Bundle, pool_dir: Path) -> None:
    manifest = bundle.manifest
    assert manifest.calibration is not None
    assert len(manifest.calibration.frame_sha256) == 8
    assert {(row.precision, row.engine) for row in manifest.parity} == {
        (precision, engine) for precision in ("fp32", "int8") for engine in ("onnxruntime", "openvino")
    }
    reference = next(row for row in manifest.parity if (row.precision, row.engine) == ("fp32", "onnxruntime"))
    assert (reference.f1_against_fp32, reference.mean_iou, reference.class_flips, reference.frames) == (1.0, 1.0, 0, 6)
    assert {"checkpoint_sha256", "seed"} <= set(manifest.lineage)
    assert set(manifest.files) == {"model.fp32.onnx", "model.int8.cpu.onnx", "calibration.json", "report.json", "report.html"}
    assert any("preferred" in line for line in parity_table(manifest))


def test_convert__without_a_pool_fp32_only(checkpoint: Path, tmp_path: Path) -> None:
    made = convert(ConvertRequest(checkpoint), tmp_path / "b", lambda _: None)
    assert [variant.precision for variant in made.manifest.variants] == ["fp32"]
    assert made.manifest.preferred.precision == "fp32"
    assert made.manifest.calibration is None


def test_release__named_by_content_and_current(checkpoint: Path, tmp_path: Path) -> None:
    made = release(ConvertRequest(checkpoint), tmp_path / "bundles", lambda _: None)
    assert made.path.name == made.digest[:16]
    assert (tmp_path / "bundles" / "current").resolve() == made.path
    again = release(ConvertRequest(checkpoint), tmp_path / "bundles", lambda _: None)
    assert again.digest == made.digest  # the same input gives the same bundle
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == sorted([made.path.name, "current"])


@pytest.mark.parametrize("case", ["no checkpoint", "empty pool", "no pool", "taken", "unwritable"])
def test_convert__a_mistake_leaves_nothing_behind(checkpoint: Path, tmp_path: Path, case: str) -> None:
    fill_pool(tmp_path / "empty", 0)
    out = tmp_path / "out" / "b"
    requests: dict[str, tuple[ConvertRequest, Path, type[EdgeloopError]]] = {
        "no checkpoint": (ConvertRequest(tmp_path / "none.pt"), out, CheckpointError),
        "empty pool": (ConvertRequest(checkpoint, tmp_path / "empty"), out, PoolError),
        "no pool": (ConvertRequest(checkpoint, tmp_path / "none"), out, PoolError),
        "taken": (ConvertRequest(checkpoint), tmp_path / "empty", ConversionError),
        "unwritable": (ConvertRequest(checkpoint), Path("/proc/none/b"), ConversionError),
    }
    request, target, error = requests[case]
    with pytest.raises(error):
        convert(request, target, lambda _: None)
    leftovers = [path.name for path in (tmp_path / "out").iterdir()] if (tmp_path / "out").exists() else []
    assert leftovers == []
    assert not list(tmp_path.glob(".edgeloop*"))


def test_bundle__an_onnx_with_external_data_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    """The weights' file is not in the manifest, so nothing vouches for it; the loader must not follow the pointer."""
    from runtime.backends import ENGINES, open_model
    from runtime.errors import BackendError

    folder = Path(shutil.copytree(bundle.path, tmp_path / "external"))
    model = onnx.load(folder / "model.fp32.onnx")
    onnx.save(model, folder / "model.fp32.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    for engine in ENGINES:
        with pytest.raises(BackendError, match="external data"):
            open_model(engine, folder / "model.fp32.onnx", "fp32")


def test_convert__the_same_frames_again_and_a_larger_batch(
    bundle: Bundle, checkpoint: Path, pool_dir: Path, tmp_path: Path
) -> None:
    request = ConvertRequest(
        checkpoint, pool_dir, confidence=0.001, bars=NO_BARS, calibration=bundle.path, batch=2, gate_frames=5, pictures=False
    )
    with few_stretches():
        again = convert(request, tmp_path / "b", lambda _: None).manifest
    assert bundle.manifest.calibration is not None
    assert again.calibration is not None
    assert again.calibration.frame_sha256 == bundle.manifest.calibration.frame_sha256
    assert (again.calibration.key, again.calibration.sampler) == (bundle.manifest.calibration.key, "k-center")
    assert {(row.precision, row.batch) for row in again.variants} == {("fp32", 1), ("int8", 1), ("fp32", 2), ("int8", 2)}
    rows = {(row.precision, row.engine, row.batch): row for row in again.parity}
    for engine in ("onnxruntime", "openvino"):
        one, two = rows["int8", engine, 1], rows["int8", engine, 2]
        assert (one.frames, two.frames) == (5, 5)
        assert one.f1_against_fp32 == pytest.approx(two.f1_against_fp32, abs=0.05)


def test_convert__tensorrt_with_labels_and_a_larger_batch(checkpoint: Path, pool_dir: Path, tmp_path: Path) -> None:
    line = Line(7, (96, 96))
    for folder in ("images", "labels"):
        (tmp_path / "set" / folder).mkdir(parents=True)
    for index in range(6):
        cv2.imwrite(str(tmp_path / "set" / "images" / f"{index}.png"), line.image(index * 5))
        (tmp_path / "set" / "labels" / f"{index}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    data = tmp_path / "set" / "data.yaml"
    data.write_text(yaml.safe_dump({"path": str(tmp_path / "set"), "val": "images", "names": list(CLASS_NAMES)}))
    request = ConvertRequest(
        checkpoint, pool_dir, confidence=0.001, bars=NO_BARS, batch=2, target="tensorrt", data=data, frames=8, pictures=False
    )
    with few_stretches():
        made = convert(request, tmp_path / "b", lambda _: None)
    kinds = {(row.precision, row.form, row.batch) for row in made.manifest.variants}
    forms = (("fp32", "any"), ("fp16", "tensorrt-strong"), ("int8", "tensorrt"), ("int8", "tensorrt-strong"))
    assert kinds == {(precision, form, batch) for precision, form in forms for batch in (1, 2)}
    assert all(row.labeled is not None and row.labeled.images == 6 for row in made.manifest.parity)
    assert made.manifest.preferred.precision == "fp32"
    assert "TensorRT's files hold by proxy and were not timed" in made.manifest.preferred.reason
    ranges = json.loads((made.path / "calibration.json").read_text())["ranges"]
    assert set(ranges) == {"model.int8.tensorrt.onnx"}, "the other INT8 files have the same ranges, which verify checks"
    assert verify_bundle(made.path, None)["digest"] == made.digest


def test_convert__what_was_not_measured_is_not_made(checkpoint: Path, tmp_path: Path) -> None:
    made = convert(ConvertRequest(checkpoint, target="tensorrt", precision="fp16"), tmp_path / "b", lambda _: None)
    assert [row.precision for row in made.manifest.variants] == ["fp32"]


def test_convert__a_stale_calibration_is_refused(bundle: Bundle, checkpoint: Path, pool_dir: Path, tmp_path: Path) -> None:
    request = ConvertRequest(checkpoint, pool_dir, imgsz=96, calibration=bundle.path)
    with pytest.raises(ConversionError, match="is stale: it was made for another graph, letterbox or scaling"):
        convert(request, tmp_path / "b", lambda _: None)
    assert not (tmp_path / "b").exists()


def test_convert__too_few_frames_to_measure_on_make_no_int8(checkpoint: Path, tmp_path: Path) -> None:
    fill_pool(tmp_path / "pool", 3)
    told: list[str] = []
    made = convert(ConvertRequest(checkpoint, tmp_path / "pool"), tmp_path / "b", told.append)
    assert [row.precision for row in made.manifest.variants] == ["fp32"]
    assert any("FP32 only: there are too few frames" in line for line in told)
