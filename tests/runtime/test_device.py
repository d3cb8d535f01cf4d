from __future__ import annotations

import pytest

from runtime.backends import ENGINES
from runtime.device import ENGINE_DISTRIBUTIONS, GPU_ENGINES, Device, engines_here
from runtime.manifest import FORM_OF_ENGINE
from runtime.tensorrt.device import find_device

VERSIONS = {"openvino": "2026.4", "tensorrt": "10.13.0.35"}
ORIN = Device(cpu="Cortex-A78AE", machine="aarch64", isa=("asimddp",), engines=VERSIONS, gpu="Orin, SM87")


def test_engines__known_everywhere_by_the_same_names() -> None:
    assert set(ENGINES) == set(ENGINE_DISTRIBUTIONS) == set(FORM_OF_ENGINE)
    assert set(GPU_ENGINES) < set(ENGINES)


@pytest.mark.parametrize(
    ("engine", "changed", "serves"),
    [
        ("tensorrt", {}, True),
        ("tensorrt", {"gpu": "NVIDIA H100, SM90"}, False),
        ("tensorrt", {"gpu": ""}, False),
        ("tensorrt", {"engines": {"tensorrt": "10.3.0.30"}}, False),
        ("tensorrt", {"isa": ("asimddp", "i8mm")}, True),
        ("openvino", {"gpu": ""}, True),
        ("openvino", {"isa": ()}, False),
    ],
)
def test_serves__gpu_engines_by_gpu_and_others_by_cpu(engine: str, changed: dict[str, object], serves: bool) -> None:
    other = ORIN.model_copy(update=changed)
    assert (ORIN.serves(engine, other), other.serves(engine, ORIN)) == (serves, serves)


def test_serves__two_devices_without_a_gpu_are_not_the_same_gpu() -> None:
    lone = ORIN.model_copy(update={"gpu": ""})
    assert not lone.serves("tensorrt", lone)


@pytest.mark.skipif(find_device() is not None, reason="there is an NVIDIA GPU here")
def test_current__without_a_gpu_no_engine_for_one() -> None:
    assert set(engines_here()).isdisjoint(GPU_ENGINES)
    here = Device.current()
    assert (here.gpu, here.engines) == ("", engines_here())


def test_device__manifests_from_before_the_gpu_was_noted() -> None:
    assert Device.model_validate(ORIN.model_dump(exclude={"gpu"})).gpu == ""
