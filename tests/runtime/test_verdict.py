from __future__ import annotations

from pathlib import Path

import pytest

from runtime.bundle import Bundle
from runtime.device import Device
from runtime.manifest import Preferred
from runtime.verdict import Verdict, load_verdict, preferred_here, save_verdict

HERE = Device.current()
INT8 = Preferred(engine="openvino", precision="int8", reason="measured")


def elsewhere(bundle: Bundle, **changes: object) -> Bundle:
    """The bundle as if it had been measured on another device, with INT8 preferred there."""
    device = HERE.model_copy(update=changes)
    manifest = bundle.manifest.model_copy(update={"measured_on": device, "preferred": INT8})
    return Bundle(bundle.path, bundle.digest, manifest)


def test_preferred_here__what_was_measured_on_a_like_device(bundle: Bundle, tmp_path: Path) -> None:
    assert preferred_here(elsewhere(bundle), folder=tmp_path) == INT8
    assert preferred_here(elsewhere(bundle, cpu="the same instructions by another name"), folder=tmp_path) == INT8


@pytest.mark.parametrize(
    "changes", [{"isa": ("avx2",)}, {"machine": "riscv64"}, {"engines": {**HERE.engines, "openvino": "1.0"}}, {"engines": {}}]
)
def test_preferred_here__fp32_where_int8_was_not_measured(
    bundle: Bundle, tmp_path: Path, changes: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    chosen = preferred_here(elsewhere(bundle, **changes), folder=tmp_path)
    assert chosen.precision == "fp32" or chosen.engine != "openvino"  # INT8 of the engine that did not change still counts
    assert chosen.engine in HERE.engines
    assert "edge-convert build" in caplog.text


def measured(bundle: Bundle, refused_engine: str) -> Bundle:
    """INT8 holds on one engine and is refused on the other."""
    rows = [
        row.model_copy(update={"refused": "scores shift" if row.engine == refused_engine else ""})
        if row.precision == "int8" else row
        for row in bundle.manifest.parity
    ]  # fmt: skip
    preferred = INT8.model_copy(update={"engine": "onnxruntime"})
    return Bundle(bundle.path, bundle.digest, bundle.manifest.model_copy(update={"parity": rows, "preferred": preferred}))


def test_preferred_here__a_verdict_for_one_engine_is_none_for_another(bundle: Bundle, tmp_path: Path) -> None:
    """INT8 holds under ONNX Runtime and is ruined under OpenVINO: who fixes OpenVINO gets FP32."""
    case = measured(bundle, refused_engine="openvino")
    assert preferred_here(case, folder=tmp_path).engine == "onnxruntime"
    fixed = preferred_here(case, engine="openvino", folder=tmp_path)
    assert (fixed.engine, fixed.precision) == ("openvino", "fp32")
    asked = preferred_here(case, precision="int8", folder=tmp_path)
    assert (asked.engine, asked.precision) == ("onnxruntime", "int8")


def test_preferred_here__an_engine_that_is_not_installed(bundle: Bundle, tmp_path: Path) -> None:
    absent = INT8.model_copy(update={"engine": "tensorrt", "precision": "fp32"})
    manifest = bundle.manifest.model_copy(update={"preferred": absent})
    chosen = preferred_here(Bundle(bundle.path, bundle.digest, manifest), folder=tmp_path)
    assert chosen.engine in HERE.engines


def test_save_verdict__counts_here_and_only_for_its_bundle(bundle: Bundle, tmp_path: Path) -> None:
    other = elsewhere(bundle, isa=("avx2",))
    verdict = Verdict(bundle=bundle.digest, device=HERE, preferred=INT8, parity=[])
    save_verdict(other, verdict, tmp_path)
    assert load_verdict(other, folder=tmp_path) == verdict
    assert preferred_here(other, folder=tmp_path) == INT8
    assert load_verdict(Bundle(bundle.path, "0" * 64, bundle.manifest), folder=tmp_path) is None


def test_load_verdict__altered_by_someone_is_not_believed(bundle: Bundle, tmp_path: Path) -> None:
    save_verdict(bundle, Verdict(bundle=bundle.digest, device=HERE, preferred=INT8, parity=[]), folder=tmp_path)
    file = next((tmp_path / "verdicts").glob("*.verdict"))
    file.write_bytes(file.read_bytes().replace(b"measured", b"believed"))
    assert load_verdict(bundle, folder=tmp_path) is None
