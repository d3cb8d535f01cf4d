"""`edge-convert` as a user meets it: in processes of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from runtime.bundle import Bundle
from runtime.manifest import Manifest
from tests.conftest import write_images

Edge = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def convert(edge: Edge) -> Edge:
    return lambda *arguments: edge(*arguments, module="converters.cli")


def test_inspect_verify_diff(convert: Edge, bundle: Bundle) -> None:
    shown = convert("inspect", bundle.path)
    assert shown.returncode == 0
    assert "model.int8.cpu.onnx: int8 for cpu, batch 1" in shown.stdout
    assert "calibration: 8 frames by k-center, seed 0" in shown.stdout
    checked = json.loads(convert("verify", bundle.path, "--json").stdout)
    assert checked["digest"] == bundle.digest
    assert any("INT8 ranges belong" in line for line in checked["verified"])
    same = json.loads(convert("diff", bundle.path, bundle.path, "--json").stdout)
    assert (same["same"], same["changed"], same["files"]) == (True, [], [])


def test_sign_then_verify_with_the_key(convert: Edge, bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(bundle.path, tmp_path / "b")
    for arguments in (
        ["genpkey", "-algorithm", "ed25519", "-out", "key.pem"],
        ["pkey", "-in", "key.pem", "-pubout", "-out", "pub.pem"],
    ):
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True)
    unsigned = convert("verify", copy, "--trust-key", tmp_path / "pub.pem")
    assert unsigned.returncode == 2
    assert "edge-convert sign" in unsigned.stderr
    assert convert("sign", copy, "--key", tmp_path / "key.pem").returncode == 0
    assert "signed by the owner" in convert("verify", copy, "--trust-key", tmp_path / "pub.pem").stdout


def test_verify__a_stale_calibration_is_told(convert: Edge, bundle: Bundle, tmp_path: Path) -> None:
    """The ranges of another graph, with hashes that are right: only the key can tell."""
    import hashlib
    import shutil

    from converters.bundle_writer import manifest_bytes

    copy = Path(shutil.copytree(bundle.path, tmp_path / "b"))
    content = json.loads((copy / "manifest.json").read_text())
    told = json.loads((copy / "calibration.json").read_text())
    told["ranges"]["model.int8.cpu.onnx"][0]["high"] = [1.0]
    (copy / "calibration.json").write_text(json.dumps(told, indent=1) + "\n")
    content["files"]["calibration.json"] = hashlib.sha256((copy / "calibration.json").read_bytes()).hexdigest()
    (copy / "manifest.json").write_bytes(manifest_bytes(Manifest.model_validate(content)))
    done = convert("verify", copy)
    assert done.returncode == 2
    assert "is stale" in done.stderr


def test_build__engines_for_another_gpu_and_a_verdict_for_this_cpu(
    convert: Edge, bundle: Bundle, pool_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELOOP_CACHE", str(tmp_path / "cache"))
    nothing = convert("build", bundle.path)
    assert nothing.returncode == 2
    assert "name --pool or --data" in nothing.stderr
    measured = convert("build", bundle.path, "--pool", pool_dir, "--gate-frames", "4")
    assert measured.returncode == 0, measured.stderr
    assert "verdict: " in measured.stdout
    assert list((tmp_path / "cache" / "verdicts").glob("*.verdict"))
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeloop[tensorrt-rtx]'")
    built = convert("build", bundle.path, "--compute-capability", "SM86")
    assert built.returncode == 0, built.stderr
    assert "fp32 by tensorrt-rtx" in built.stdout
    assert list((tmp_path / "cache" / "engines").glob("*.plan"))


def test_convert__dry_run_writes_nothing(convert: Edge, checkpoint: Path, pool_dir: Path, tmp_path: Path) -> None:
    done = convert(checkpoint, "--pool", pool_dir, "--dry-run", "--out", tmp_path / "b", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["calibration"] == "18 of 24 pool frames by k-center"
    assert any("int8 cpu" in line for line in told["files"])
    assert not (tmp_path / "b").exists()


def test_convert__dry_run_refuses_what_the_run_would(convert: Edge, checkpoint: Path, pool_dir: Path) -> None:
    done = convert(checkpoint, "--pool", pool_dir, "--dry-run", "--frames", 400)
    assert done.returncode == 2
    assert "has 24 frames, 6 of them for the check, but --frames asks for 400" in done.stderr


def test_convert__require_int8_that_does_not_hold_is_3_and_the_bundle_is_there(
    convert: Edge, checkpoint: Path, pool_dir: Path, tmp_path: Path
) -> None:
    """Fresh weights see nothing, so nothing is proved: FP32 is what the bundle prefers."""
    done = convert(checkpoint, "--pool", pool_dir, "--out", tmp_path / "b", "--require-int8", "--json", "--frames", 4)
    assert done.returncode == 3
    assert "--require-int8, but" in done.stderr
    result = json.loads(done.stdout)
    assert result["preferred"]["precision"] == "fp32"
    assert "only 0 boxes to compare" in result["preferred"]["reason"]
    assert result["seconds"] > 0
    assert Bundle.open(tmp_path / "b").digest == result["digest"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["CKPT"], "name one of --out BUNDLE and --release BUNDLES"),
        (["CKPT", "--out", "b", "--precision", "int8"], "--precision int8 needs frames to calibrate with"),
        (["CKPT", "--out", "b", "--precision", "fp16"], "--precision fp16 is for GPUs"),
        (["CKPT", "--out", "b", "--target", "tpu"], "--target 'tpu' is unknown"),
        (["CKPT", "--out", "b", "--pool", "POOL", "--frames", "100"], "has 24 usable frames"),
        (["CKPT", "--out", "b", "--pool", "POOL", "--sampler", "best"], "unknown sampler 'best'"),
        (["CKPT", "--out", "b", "--pool", "BLACK"], "calibration frames of BLACK are black"),
        (["CKPT", "--out", "b", "--pool", "POOL", "--data", "other.yaml"], "they must be the same, in the same order"),
        (["CKPT", "--out", "b", "--calibration", "b"], "b is no bundle: there is no such folder"),
        (["none.onnx", "--out", "b"], "none.onnx"),
    ],
)
def test_convert__a_mistake_is_one_sentence_and_leaves_nothing(
    convert: Edge, checkpoint: Path, pool_dir: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    import numpy as np

    from runtime.pool import Pool, Seen

    with Pool.create(tmp_path / "BLACK") as pool:
        for index in range(8):
            pool.add(np.full((64, 64, 3), index % 2, np.uint8), Seen("cap", float(index), "test"))
            pool.add(np.zeros((64, 64 + index, 3), np.uint8), Seen("cap", index + 0.5, "test"))
    write_images(tmp_path / "images", 2)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "000.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"val": "images", "names": {0: "x"}}))
    places = {"CKPT": str(checkpoint), "POOL": str(pool_dir)}
    done = convert(*(places.get(word, word) for word in arguments))
    assert done.returncode == 2, done.stderr
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "b").exists()
    assert not list(tmp_path.glob(".edgeloop*"))
