from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from converters.convert import ConvertRequest, convert, parity_table, release
from converters.errors import CheckpointError, ConversionError
from converters.parity import prefer
from runtime.bundle import Bundle, Parity
from runtime.errors import EdgeloopError, PoolError
from tests.conftest import fill_pool


def test_convert__records_what_it_did(bundle: Bundle, pool_dir: Path) -> None:
    manifest = bundle.manifest
    assert manifest.calibration is not None
    assert len(manifest.calibration.frame_sha256) == 8
    assert {(row.precision, row.engine) for row in manifest.parity} == {
        (precision, engine) for precision in ("fp32", "int8") for engine in ("onnxruntime", "openvino")
    }
    reference = next(row for row in manifest.parity if (row.precision, row.engine) == ("fp32", "onnxruntime"))
    assert (reference.f1_against_fp32, reference.mean_iou, reference.class_flips, reference.frames) == (1.0, 1.0, 0, 6)
    assert set(manifest.lineage) == {"checkpoint_sha256", "seed"}
    assert set(manifest.files) == {"model.fp32.onnx", "model.int8.onnx"}
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
    assert not list(tmp_path.glob(".*partial*"))


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


def parity(precision: str, engine: str, f1: float, shift: float, p50: float, boxes: int = 50) -> Parity:
    return Parity.model_validate(
        {
            "precision": precision, "engine": engine, "frames": 8, "f1_against_fp32": f1, "mean_iou": 1.0, "mean_score_shift": shift,
            "boxes": boxes, "class_flips": 0, "latency_p50_ms": p50, "latency_p99_ms": p50,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("int8_f1", "int8_shift", "int8_ms", "expected"),
    [(0.95, 0.01, 5.0, "int8"), (0.80, 0.01, 5.0, "fp32"), (0.95, -0.05, 5.0, "fp32"), (0.95, 0.01, 15.0, "fp32")],
)
def test_prefer__fast_only_if_it_agrees(int8_f1: float, int8_shift: float, int8_ms: float, expected: str) -> None:
    rows = [parity("fp32", "onnxruntime", 1.0, 0.0, 10.0), parity("int8", "openvino", int8_f1, int8_shift, int8_ms)]
    chosen = prefer(rows)
    assert chosen.precision == expected
    assert ("refused" in chosen.reason) == (int8_f1 < 0.9 or abs(int8_shift) > 0.03)


def test_prefer__agreement_on_nothing_is_no_proof() -> None:
    rows = [parity("fp32", "onnxruntime", 1.0, 0.0, 10.0, boxes=0), parity("int8", "openvino", 1.0, 0.0, 5.0, boxes=0)]
    chosen = prefer(rows)
    assert chosen.precision == "fp32"
    assert "only 0 boxes to compare" in chosen.reason


def test_prefer__nothing_measured() -> None:
    assert (prefer([]).precision, prefer([]).engine) == ("fp32", "onnxruntime")
