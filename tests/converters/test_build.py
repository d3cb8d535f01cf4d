from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from converters.build import Builders, BuildRequest, Outcome, build
from runtime.bundle import Bundle
from runtime.errors import BackendError, CacheError, SignatureError
from runtime.files import sha256_of_file
from runtime.tensorrt.device import Device
from runtime.tensorrt.flavour import Flavour, flavour_of
from runtime.verdict import load_verdict
from tests.conftest import ROOT, write_images
from tests.runtime.tensorrt.recording import recording

HOPPER = Device("NVIDIA H100", "SM90", 132, 12)
BROKEN = BackendError("tensorrt does not load: libnvinfer.so.10: cannot open shared object file; install it again")
# What `pip install edgeloop[cpu]` does not bring.
NOT_ON_A_DEVICE = (
    "onnx",
    "nncf",
    "onnxslim",
    "torch",
    "torchvision",
    "ultralytics",
    "lightly",
    "matplotlib",
    "faster_coco_eval",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The device's cache, for this test alone."""
    monkeypatch.setenv("EDGELOOP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def working() -> Flavour:
    return flavour_of(recording("10.3.0.30")[0])


def failing() -> Flavour:
    """TensorRT-RTX on a GPU that it does not know, like Hopper or Orin: it gives no engine."""
    trt, record = recording("10.13.0.35")
    record.answers["Builder.build_serialized_network"] = lambda *_: None
    return Flavour("tensorrt-rtx", "1.7.1.116", trt)


def told(request: BuildRequest, builders: Builders) -> tuple[Outcome, list[str]]:
    lines: list[str] = []
    return build(request, lines.append, builders), lines


def test_build__an_engine_that_fails_stops_neither_the_others_nor_the_verdict(bundle: Bundle, pool_dir: Path) -> None:
    request = BuildRequest(bundle.path, pool_dir, gate_frames=4)
    outcome, lines = told(request, Builders([failing(), working()], [BROKEN], HOPPER))
    assert outcome.refusal == ""
    assert [line.split(" of ")[0] for line in outcome.engines] == ["fp32 by tensorrt 10.3.0.30", "fp16 by tensorrt 10.3.0.30"]
    assert load_verdict(bundle) == outcome.verdict is not None
    assert len(outcome.failures) == 2
    assert outcome.failures[0] == f"not built: {BROKEN}"
    assert outcome.failures[1].startswith("not built: fp32 by tensorrt-rtx: ")
    assert all(lines.count(line) == 1 and "\n" not in line for line in outcome.failures)


def test_build__without_onnx_runtimes_fp32_the_engines_are_built(bundle: Bundle, pool_dir: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundle.path, tmp_path / "b"))
    (folder / "model.fp32.onnx").write_bytes(b"damaged before it was hashed")
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["model.fp32.onnx"] = sha256_of_file(folder / "model.fp32.onnx")
    content["variants"][1]["form"] = "tensorrt"
    (folder / "manifest.json").write_text(json.dumps(content))
    outcome, _ = told(BuildRequest(folder, pool_dir, gate_frames=4), Builders([working()], gpu=HOPPER))
    assert [line.split(" of ")[0] for line in outcome.engines] == ["int8 by tensorrt 10.3.0.30"]
    assert outcome.failures[0].startswith("not measured: ")
    assert outcome.refusal == "this device's verdict could not be had, for the reasons above"


@pytest.mark.parametrize(
    ("builders", "refusal"),
    [
        (Builders([failing()], gpu=HOPPER), "1 of 1 engines could not be had, for the reasons above"),
        (Builders((), [BROKEN], HOPPER), "1 of 1 engines could not be had, for the reasons above"),
        (Builders([failing(), working()], [BROKEN], HOPPER), ""),
    ],
)
def test_build__refuses_where_nothing_at_all_could_be_done(bundle: Bundle, builders: Builders, refusal: str) -> None:
    assert told(BuildRequest(bundle.path), builders)[0].refusal == refusal


def test_build__refuses_where_an_engine_that_was_named_failed(bundle: Bundle, pool_dir: Path) -> None:
    request = BuildRequest(bundle.path, pool_dir, compute_capabilities=("SM90",), gate_frames=4)
    outcome, _ = told(request, Builders([failing()]))
    assert outcome.refusal == "1 of 1 engines could not be had, for the reasons above"
    assert load_verdict(bundle) == outcome.verdict is not None


@pytest.mark.parametrize("builders", [Builders(), Builders([working()], gpu=HOPPER)])
def test_build__an_unwritable_cache_is_noticed_before_anything_is_done(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, builders: Builders
) -> None:
    monkeypatch.setenv("EDGELOOP_CACHE", "/proc/none")
    with pytest.raises(CacheError, match="cannot be used"):  # before the pool, which is none
        told(BuildRequest(bundle.path, Path("no pool")), builders)


def test_build__what_was_measured_is_printed_where_it_cannot_be_kept(bundle: Bundle, pool_dir: Path, cache: Path) -> None:
    (cache / "verdicts").mkdir(parents=True, mode=0o700)
    (cache / "verdicts" / f"{bundle.digest[:16]}.verdict").mkdir()  # as on a full disk, nothing fits there
    done = device("build", bundle.path, "--pool", pool_dir, "--gate-frames", 4, "--json")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "edge-convert: this device's verdict could not be had, for the reasons above"
    assert "the verdict is not kept: the engine cache" in done.stderr
    result = json.loads(done.stdout)
    assert {row["engine"] for row in result["measurements"]} == {"onnxruntime", "openvino"}
    assert result["verdict"]


def test_build__trust_key_before_anything_is_parsed(bundle: Bundle, tmp_path: Path) -> None:
    for arguments in (
        ["genpkey", "-algorithm", "ed25519", "-out", "k.pem"],
        ["pkey", "-in", "k.pem", "-pubout", "-out", "p.pem"],
    ):
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)
    folder = Path(shutil.copytree(bundle.path, tmp_path / "b"))
    (folder / "manifest.json").write_text("no JSON")
    with pytest.raises(SignatureError, match="is not signed, and a trust key is set"):
        build(BuildRequest(folder, trust_key=tmp_path / "p.pem"), lambda _: None, Builders())
    refused = device("build", bundle.path, "--trust-key", tmp_path / "p.pem", "--pool", tmp_path)
    assert (refused.returncode, "is not signed" in refused.stderr) == (2, True)


def device(*arguments: object, without: Sequence[str] = NOT_ON_A_DEVICE) -> subprocess.CompletedProcess[str]:
    """`edge-convert …` where packages are not installed, as far as Python can tell."""
    program = (
        f"import sys\nfor name in {tuple(without)!r}:\n    sys.modules[name] = None\nfrom converters.cli import main\nmain()"
    )
    command = [sys.executable, "-c", program, *(str(argument) for argument in arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_build__on_a_device_that_has_an_engine_and_nothing_else(bundle: Bundle, pool_dir: Path) -> None:
    done = device("build", bundle.path, "--pool", pool_dir, "--gate-frames", 4)
    assert done.returncode == 0, done.stderr
    assert "verdict: " in done.stdout
    assert load_verdict(bundle) is not None


@pytest.mark.parametrize("command", ["inspect", "diff"])
def test_inspect_diff__on_a_device_that_has_an_engine_and_nothing_else(bundle: Bundle, command: str) -> None:
    done = device(command, *[bundle.path] * (2 if command == "diff" else 1))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "missing", "package"),
    [
        (["verify", "BUNDLE"], "onnx", "onnx"),
        (["build", "BUNDLE", "--data", "DATA"], "faster_coco_eval", "faster-coco-eval"),
        (["CKPT", "--out", "b"], "onnx", "onnx"),
        (["CKPT", "--out", "b"], "onnxslim", "onnxslim"),
        (["CKPT", "--out", "b"], "onnxruntime", "onnxruntime"),
        (["CKPT", "--out", "b", "--pool", "POOL"], "nncf", "nncf"),
        (["CKPT", "--dry-run", "--pool", "POOL"], "nncf", "nncf"),
        (["CKPT", "--out", "b", "--data", "DATA"], "faster_coco_eval", "faster-coco-eval"),
    ],
)
def test_command__a_missing_package_is_told_before_work_begins(
    bundle: Bundle, checkpoint: Path, pool_dir: Path, tmp_path: Path, arguments: list[str], missing: str, package: str
) -> None:
    write_images(tmp_path / "images", 2)
    names = dict(enumerate(bundle.manifest.classes))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"path": str(tmp_path), "val": "images", "names": names}))
    places = {"BUNDLE": bundle.path, "CKPT": checkpoint, "POOL": pool_dir, "DATA": tmp_path / "data.yaml", "b": tmp_path / "b"}
    done = device(*(places.get(word, word) for word in arguments), without=[missing])
    assert done.returncode == 2
    sentence = f"{package} is not installed; install it with: pip install 'edgeloop[convert]'"
    lines = done.stderr.splitlines()
    if arguments[0] == "build":  # the engines of a GPU would be built all the same
        assert lines[0] == f"not measured: {sentence}"
    else:
        assert lines == [f"edge-convert: {sentence}"]
    assert "measuring" not in done.stderr
    assert not (tmp_path / "b").exists()


def test_build__an_unknown_gpu_is_told_before_anything_is_done(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeloop[tensorrt-rtx]'")
    with pytest.raises(BackendError, match=r"cannot build for BANANA; it can for SM75"):
        Builders.of_this_device(("SM86", "BANANA"))
