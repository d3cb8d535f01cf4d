from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import helper

from runtime.bundle import Bundle
from runtime.errors import BackendError, CacheError
from runtime.sealed_folder import cache_folder
from runtime.tensorrt.device import Device
from runtime.tensorrt.engine_cache import EngineCache, EngineKey, EngineRequest, engine_for, engine_key
from runtime.tensorrt.engine_from_onnx import BuildOptions
from runtime.tensorrt.flavour import Flavour, flavour_of, load_flavour
from tests.conftest import ROOT
from tests.runtime.tensorrt.recording import Record, recording
from tests.runtime.tensorrt.test_engine_from_onnx import SM86, model

ORIN = Device("Orin", "SM87", 14, 12)


@pytest.fixture
def relu(tmp_path: Path) -> Path:
    return model(tmp_path / "relu.onnx", helper.make_node("Relu", ["x"], ["y"]))


@pytest.fixture
def rtx() -> Flavour:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeloop[tensorrt-rtx]'")
    return load_flavour("tensorrt-rtx")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


def old(version: str = "10.3.0.30") -> tuple[Flavour, Record]:
    trt, record = recording(version)
    return flavour_of(trt), record


def stored(cache: EngineCache, relu: Path) -> tuple[EngineKey, Path, Path]:
    key = engine_key(EngineRequest(relu, "fp32"), old()[0], ORIN)
    with cache.sealed.lock():
        cache.store(key, b"a plan")
    plan = cache.sealed.path / f"{key.digest}.plan"
    return key, plan, plan.with_name(f"{plan.name}.json")


def test_engine_for__a_real_plan_is_built_once(bundle: Bundle, rtx: Flavour, cache: EngineCache) -> None:
    request = EngineRequest(bundle.model_path("fp32"), "fp32", options=SM86)
    steps: list[str] = []
    plan = engine_for(request, cache, rtx, progress=lambda phase, _: steps.append(phase))
    assert len(steps) > 100
    steps.clear()
    again = engine_for(request, EngineCache(cache.sealed.path.parent), rtx, progress=lambda phase, _: steps.append(phase))
    assert (again, steps) == (plan, [])
    assert {stat.S_IMODE(path.stat().st_mode) for path in cache.sealed.path.iterdir()} == {0o600}
    assert stat.S_IMODE(cache.sealed.path.stat().st_mode) == 0o700


def test_engine_for__one_altered_byte_of_a_real_plan(
    bundle: Bundle, rtx: Flavour, cache: EngineCache, caplog: pytest.LogCaptureFixture
) -> None:
    request = EngineRequest(bundle.model_path("fp32"), "fp32", options=SM86)
    engine_for(request, cache, rtx)
    key = engine_key(request, rtx, None)
    (path,) = cache.sealed.path.glob("*.plan")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert cache.load(key) is None
    assert "is damaged, altered or from elsewhere: it is not used" in caplog.text
    assert engine_for(request, cache, rtx) == cache.load(key) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda key: replace(key, onnx_sha256="0" * 64),
        lambda key: replace(key, precision="int8"),
        lambda key: replace(key, ranges_sha256="0" * 64),
        lambda key: replace(key, options=BuildOptions(workspace_bytes=1)),
        lambda key: replace(key, options=SM86),
        lambda key: replace(key, flavour="tensorrt-rtx"),
        lambda key: replace(key, version="10.3.0.31"),
        lambda key: replace(key, device=None),
        lambda key: replace(key, device=replace(ORIN, name="Orin Nano")),
        lambda key: replace(key, device=replace(ORIN, compute_capability="SM86")),
        lambda key: replace(key, device=replace(ORIN, sm_count=8)),
        lambda key: replace(key, device=replace(ORIN, cuda_major=13)),
        lambda key: replace(key, recipe=2),
    ],
)
def test_load__another_key_is_another_plan(cache: EngineCache, relu: Path, change: Callable[[EngineKey], EngineKey]) -> None:
    key, _, _ = stored(cache, relu)
    assert cache.load(key) == b"a plan"
    assert cache.load(change(key)) is None
    assert cache.load(key) == b"a plan"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, sort_keys=True, separators=(",", ":")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda plan, sidecar: plan.write_bytes(b"A plan"),
        lambda plan, sidecar: plan.write_bytes(b"a plan and more"),
        lambda plan, sidecar: plan.write_bytes(b""),
        lambda plan, sidecar: sidecar.write_bytes(b""),
        lambda plan, sidecar: sidecar.write_bytes(b"\xff{"),
        lambda plan, sidecar: edit(sidecar, lambda told: told.update(version="10.3.0.31")),
        lambda plan, sidecar: edit(sidecar, lambda told: told["device"].update(name="Thor")),
        lambda plan, sidecar: edit(sidecar, lambda told: told.update(hmac_sha256="0" * 64)),
        lambda plan, sidecar: edit(sidecar, lambda told: told.pop("hmac_sha256")),
    ],
)
def test_load__what_fails_its_seal_is_never_returned(
    cache: EngineCache, relu: Path, damage: Callable[[Path, Path], object]
) -> None:
    key, plan, sidecar = stored(cache, relu)
    damage(plan, sidecar)
    assert cache.load(key) is None


@pytest.mark.parametrize("lost", [".plan", ".plan.json"])
def test_load__half_an_entry_is_none(cache: EngineCache, relu: Path, lost: str) -> None:
    key, _, _ = stored(cache, relu)
    (cache.sealed.path / f"{key.digest}{lost}").unlink()
    assert cache.load(key) is None


def test_load__a_plan_of_another_device_does_not_carry_this_seal(cache: EngineCache, relu: Path, tmp_path: Path) -> None:
    key, plan, sidecar = stored(cache, relu)
    here = EngineCache(tmp_path / "other")
    for path in (plan, sidecar):
        (here.sealed.path / path.name).write_bytes(path.read_bytes())
    assert here.load(key) is None


def test_load__a_plan_under_another_name_does_not_pass(cache: EngineCache, relu: Path) -> None:
    key, plan, sidecar = stored(cache, relu)
    other = replace(key, version="10.4.0.1")
    plan.rename(plan.with_name(f"{other.digest}.plan"))
    sidecar.rename(sidecar.with_name(f"{other.digest}.plan.json"))
    assert cache.load(other) is None


def test_store__keeps_only_the_newest(cache: EngineCache, relu: Path) -> None:
    key, _, _ = stored(cache, relu)
    with cache.sealed.lock():
        for number in range(25):
            cache.store(replace(key, recipe=100 + number), b"x")
    assert len(list(cache.sealed.path.glob("*.plan"))) == len(list(cache.sealed.path.glob("*.plan.json"))) == 18
    assert cache.load(replace(key, recipe=124)) == b"x"


def test_engine_for__what_a_kill_left_goes_with_the_next_build(cache: EngineCache, relu: Path) -> None:
    """Killed between a plan and its sidecar, or while a file was written; files of others stay."""
    key, plan, _ = stored(cache, relu)
    left = [cache.sealed.path / name for name in (f"{'0' * 64}.plan", f"{'1' * 64}.timing", ".x.plan.1.partial")]
    other = cache.sealed.path / "notes.txt"
    for path in (*left, other):
        path.write_bytes(b"half")
    engine_for(EngineRequest(relu, "fp16"), cache, old()[0], ORIN)
    assert not any(path.exists() for path in left)
    assert other.exists()
    assert plan.exists()
    assert cache.load(key) == b"a plan"


def test_refuse_unwritable__leaves_nothing(cache: EngineCache) -> None:
    before = {path.name for path in cache.sealed.path.iterdir()}
    cache.sealed.refuse_unwritable()
    assert {path.name for path in cache.sealed.path.iterdir()} == before | {"build.lock"}


def test_refuse_unwritable__a_folder_that_takes_no_file(cache: EngineCache) -> None:
    (cache.sealed.path / f".{os.getpid()}.partial").mkdir()  # as a disk that became read-only would
    with pytest.raises(CacheError, match="cannot be used"):
        cache.sealed.refuse_unwritable()


def test_engine_for__timings_are_kept_under_seal(cache: EngineCache, relu: Path) -> None:
    for precision in ("fp32", "fp16"):
        flavour, record = old()
        assert engine_for(EngineRequest(relu, precision), cache, flavour, ORIN) == b"plan"
        expected = b"" if precision == "fp32" else b"timings"
        assert record.of("IBuilderConfig.create_timing_cache") == [(expected,)]
    (timings,) = cache.sealed.path.glob("*.timing")
    timings.write_bytes(b"planted")
    flavour, record = old()
    engine_for(EngineRequest(relu, "int8"), cache, flavour, ORIN)
    assert record.of("IBuilderConfig.create_timing_cache") == [(b"",)]


def test_engine_for__a_file_that_changes_meanwhile(cache: EngineCache, relu: Path) -> None:
    flavour, _ = old()
    with pytest.raises(BackendError, match="changed while its engine was built"):
        engine_for(EngineRequest(relu, "fp32"), cache, flavour, ORIN, lambda *_: relu.write_bytes(relu.read_bytes() + b"\0"))
    assert not list(cache.sealed.path.glob("*.plan"))


def test_engine_for__a_plan_that_cannot_be_kept_still_runs(
    cache: EngineCache, relu: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flavour, _ = old()
    request = EngineRequest(relu, "fp32")
    (
        cache.sealed.path / f"{engine_key(request, flavour, ORIN).digest}.plan"
    ).mkdir()  # as a full disk would, nothing fits there
    assert engine_for(request, cache, flavour, ORIN) == b"plan"
    assert "the engine is not kept and will be built again next time" in caplog.text


def test_engine_key__neither_gpu_nor_target(relu: Path, rtx: Flavour) -> None:
    with pytest.raises(BackendError, match=r"no NVIDIA GPU here.*compute_capabilities"):
        engine_key(EngineRequest(relu, "fp32"), rtx, None)
    with pytest.raises(BackendError, match="no NVIDIA GPU here that tensorrt could build for; run on the device"):
        engine_key(EngineRequest(relu, "fp32"), old()[0], None)


def test_engine_key__no_such_file(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be read: No such file"):
        engine_key(EngineRequest(tmp_path / "none.onnx", "fp32"), old()[0], ORIN)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"EDGELOOP_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/edgeloop"),
        ({"HOME": "/c"}, "/c/.cache/edgeloop"),
    ],
)
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str) -> None:
    for name in ("EDGELOOP_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def linked(folder: Path) -> None:
    (folder.parent / "elsewhere").mkdir(parents=True)
    folder.symlink_to(folder.parent / "elsewhere")


def foreign(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    folder.mkdir(parents=True, mode=0o700)
    os.chown(folder, 12345, 12345)


def open_to_all(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def a_file(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_bytes(b"")


def below_a_file(folder: Path) -> None:
    folder.parent.write_bytes(b"")


def open_key(folder: Path) -> None:
    EngineCache(folder.parent)
    (folder / "hmac.key").chmod(0o644)


def linked_key(folder: Path) -> None:
    EngineCache(folder.parent)
    (folder / "hmac.key").rename(folder / "other")
    (folder / "hmac.key").symlink_to("other")


def short_key(folder: Path) -> None:
    EngineCache(folder.parent)
    (folder / "hmac.key").write_bytes(b"short")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (linked, "is a link or something else"),
        (foreign, "belongs to user 12345"),
        (open_to_all, "is open to other users"),
        (a_file, "cannot be used: File exists"),
        (below_a_file, "cannot be used: (Not a directory|File exists)"),
        (open_key, r"hmac\.key is open to other users"),
        (linked_key, r"hmac\.key cannot be used: Too many levels of symbolic links"),
        (short_key, r"hmac\.key is no key of this kit"),
    ],
)
def test_engine_cache__a_folder_that_cannot_be_trusted(tmp_path: Path, prepare: Callable[[Path], None], message: str) -> None:
    prepare(tmp_path / "cache" / "engines")
    with pytest.raises(CacheError, match=message) as caught:
        EngineCache(tmp_path / "cache")
    assert "\n" not in str(caught.value)


def test_engine_cache__unwritable() -> None:
    with pytest.raises(CacheError, match=r"cannot be used: .*EDGELOOP_CACHE"):
        EngineCache(Path("/proc/none"))


CHILD = """
import sys
from pathlib import Path
import tensorrt_rtx
from runtime.sealed_folder import cache_folder
from runtime.tensorrt.engine_cache import EngineCache, EngineRequest, engine_for
from runtime.tensorrt.engine_from_onnx import BuildOptions
from runtime.tensorrt.flavour import flavour_of
steps = []
def progress(phase, share):
    steps.append(phase)
    print("step", flush=True)
request = EngineRequest(Path(sys.argv[1]), "fp32", options=BuildOptions(compute_capabilities=("SM86",)))
engine_for(request, EngineCache(Path(sys.argv[2])), flavour_of(tensorrt_rtx), progress=progress)
print("built" if steps else "found", flush=True)
"""


def child(onnx_path: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(onnx_path), str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_engine_for__of_two_processes_one_builds(bundle: Bundle, rtx: Flavour, tmp_path: Path) -> None:
    racing = [child(bundle.model_path("fp32"), tmp_path) for _ in range(2)]
    ends = [process.communicate(timeout=60)[0].splitlines()[-1] for process in racing]
    assert sorted(ends) == ["built", "found"]
    assert (tmp_path / "engines" / "hmac.key").stat().st_size == 32


@pytest.mark.parametrize("after", [0.0, 0.3, 0.6])
def test_engine_for__kill_9_leaves_nothing_half_made(bundle: Bundle, rtx: Flavour, tmp_path: Path, after: float) -> None:
    process = child(bundle.model_path("fp32"), tmp_path)
    assert process.stdout is not None
    process.stdout.readline()  # the build has begun
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    leftover = tmp_path / "engines" / ".x.plan.1.partial"
    leftover.write_bytes(b"half")
    request = EngineRequest(bundle.model_path("fp32"), "fp32", options=SM86)
    cache = EngineCache(tmp_path)
    plan = engine_for(request, cache, rtx)
    assert cache.load(engine_key(request, rtx, None)) == plan
    with cache.sealed.lock():
        assert not leftover.exists()


KEY_RACE = "import sys\nfrom pathlib import Path\nfrom runtime.tensorrt.engine_cache import EngineCache\n"
KEY_RACE += "sys.stdin.readline()\nprint(EngineCache(Path(sys.argv[1])).sealed._secret.hex())"


def test_engine_cache__racing_processes_end_with_one_key(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KEY_RACE, str(tmp_path)]
    racing = [subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    keys = {process.communicate("go\n", timeout=60)[0] for process in racing}
    assert len(keys) == 1
    assert keys == {(tmp_path / "engines" / "hmac.key").read_bytes().hex() + "\n"}
