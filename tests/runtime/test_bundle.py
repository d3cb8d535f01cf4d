from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.bundle import Bundle, publish
from runtime.errors import BundleError


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that may be damaged."""
    return Path(shutil.copytree(bundle.path, tmp_path / "bundle"))


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_open__reads_what_was_written(bundle: Bundle) -> None:
    again = Bundle.open(bundle.path)
    assert again == bundle
    assert again.preprocess.size_wh == (64, 64)
    assert again.thresholds.iou == 0.7
    assert {variant.precision for variant in again.manifest.variants} == {"fp32", "int8"}


def test_open__altered_file(copied: Path) -> None:
    model = copied / "model.int8.cpu.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.int8\.cpu\.onnx was altered"):
        Bundle.open(copied)


def test_open__missing_file(copied: Path) -> None:
    (copied / "model.fp32.onnx").unlink()
    with pytest.raises(BundleError, match="missing; fetch the bundle again"):
        Bundle.open(copied)


def test_open__no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema_version=3), "schema version 3, but this edgeloop reads up to 2"),
        (lambda m: m.update(schema_version="x"), "schema_version"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m["files"].update({"../../etc/passwd": "0" * 64}), "leaves the bundle"),
        (lambda m: m["files"].update({"/etc/passwd": "0" * 64}), "leaves the bundle"),
        (lambda m: m["variants"].append({"precision": "int8", "file": "other.onnx"}), "not in files"),
        (lambda m: m["thresholds"].update(confidence=2), "thresholds.confidence"),
        (lambda m: m.update(classes=[]), "classes"),
        (lambda m: m["preferred"].update(precision="fp16"), "preferred.precision"),
    ],
)
def test_open__refuses_a_manifest(copied: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        Bundle.open(edited(copied, change))


def test_open__a_link_out_of_the_bundle(copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    shutil.move(copied / "model.fp32.onnx", outside)
    (copied / "model.fp32.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="link out of the bundle"):
        Bundle.open(copied)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_open__fuzzed_manifest_gives_a_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "fuzzed"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(BundleError, match="not a valid manifest"):
        Bundle.open(folder)


def test_model_path__unknown_precision(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no fp16 model for any, batch 1; it has fp32 for any, batch 1, int8 for cpu"):
        bundle.model_path("fp16")


def test_publish__moves_current_in_one_step(copied: Path, bundle: Bundle, tmp_path: Path) -> None:
    first = Bundle.open(copied)
    publish(tmp_path, first)
    second = Bundle.open(edited(Path(shutil.copytree(copied, tmp_path / "second")), lambda m: m["lineage"].update(note="new")))
    publish(tmp_path, second)
    assert Bundle.open(tmp_path / "current").digest == second.digest != first.digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "current", "second"]
    with pytest.raises(BundleError, match="is not in"):
        publish(tmp_path, bundle)
