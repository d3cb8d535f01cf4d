from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import NoReturn, cast

import pytest

from runtime.cuda.driver import Cuda, first_installed, open_cuda
from runtime.cuda.pycuda import PycudaCuda
from runtime.errors import BackendError, MissingPackageError
from runtime.tensorrt.device import find_device
from tests.conftest import ROOT

HERE = cast(Cuda, object())


def absent(package: str, extra: str) -> NoReturn:
    raise MissingPackageError(package, extra)


def refused() -> NoReturn:
    raise BackendError("the driver is too old")


def test_first_installed__takes_the_first_that_is_there() -> None:
    assert first_installed([lambda: absent("a", "cuda"), lambda: HERE, refused]) is HERE


def test_first_installed__names_the_first_extra_when_none_is() -> None:
    with pytest.raises(MissingPackageError, match=r"edgeloop\[cuda\]"):
        first_installed([lambda: absent("a", "cuda"), lambda: absent("b", "pycuda")])


def test_first_installed__one_that_is_there_and_fails_is_told() -> None:
    with pytest.raises(BackendError, match="the driver is too old"):
        first_installed([refused, lambda: HERE])


@pytest.mark.skipif(find_device() is not None, reason="there is an NVIDIA GPU here")
def test_open_cuda__without_a_gpu() -> None:
    with pytest.raises(BackendError, match="there is no NVIDIA GPU here"):
        open_cuda()


@pytest.mark.skipif(find_device() is not None, reason="there is an NVIDIA GPU here")
def test_bindings__without_a_driver() -> None:
    pytest.importorskip("cuda.bindings.driver", reason="pip install 'edgeloop[cuda]'")
    from runtime.cuda.bindings import BindingsCuda

    with pytest.raises(BackendError, match="finds no driver"):
        BindingsCuda()


@pytest.mark.skipif(find_spec("pycuda") is not None, reason="pycuda is installed here")
def test_pycuda__not_installed() -> None:
    with pytest.raises(MissingPackageError, match=r"edgeloop\[pycuda\]"):
        PycudaCuda()


def test_bindings__not_installed() -> None:
    code = (
        "import sys; sys.modules['cuda.bindings'] = None\n"
        "from runtime.cuda.bindings import BindingsCuda\n"
        "from runtime.errors import MissingPackageError\n"
        "try:\n    BindingsCuda()\nexcept MissingPackageError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "cuda-bindings is not installed; install it with: pip install 'edgeloop[cuda]'"
