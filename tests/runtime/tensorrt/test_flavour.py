from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import BackendError
from runtime.tensorrt.flavour import flavour_of, installed_flavours, load_flavour
from tests.conftest import ROOT
from tests.runtime.tensorrt.recording import recording


def test_flavour_of__the_full_module() -> None:
    flavour = flavour_of(recording("10.3.0.30")[0])
    assert (flavour.name, flavour.version, flavour.major_minor, flavour.rtx) == ("tensorrt", "10.3.0.30", (10, 3), False)


def test_load_flavour__rtx() -> None:
    pytest.importorskip("tensorrt_rtx", reason="pip install 'edgeloop[tensorrt-rtx]'")
    flavour = load_flavour("tensorrt-rtx")
    assert flavour.rtx
    assert flavour.baked_precision
    assert flavour in installed_flavours()[0]


def test_load_flavour__unknown_lists_the_known() -> None:
    with pytest.raises(BackendError, match="there are tensorrt, tensorrt-rtx"):
        load_flavour("trt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "tensorrt is not installed; install it with: pip install 'edgeloop[tensorrt]'"),
        ("", "tensorrt is not installed"),  # an empty package, as stubs beside the real packages would be
        ("import no_such_library", "tensorrt does not load: No module named 'no_such_library'"),
        ("raise OSError('libnvinfer.so.10: cannot open shared object file')", "does not load: libnvinfer.so.10"),
    ],
)
def test_load_flavour__missing_or_broken(tmp_path: Path, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / "tensorrt").mkdir()
        (tmp_path / "tensorrt" / "__init__.py").write_text(content)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from runtime.errors import EdgeloopError\nfrom runtime.tensorrt.flavour import load_flavour\n"
        "try:\n    load_flavour('tensorrt')\nexcept EdgeloopError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert told in done.stdout
