from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

_HEAVY = ("torch", "torchvision", "ultralytics", "lightly", "onnx", "nncf")


def modules_after(program: str) -> set[str]:
    code = f"import json, sys\n{program}\nprint('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "program",
    [
        "import runtime",
        "import runtime; [getattr(runtime, name) for name in runtime.__all__]",
        "import runtime.daemon, runtime.bench, runtime.backends.onnxruntime, runtime.backends.openvino",
        "import runtime.signature, runtime.tensorrt.engine_cache",
        "import runtime.server.thread, runtime.server.app, runtime.exposition, runtime.telemetry.sampler, runtime.logs",
        "import runtime.cuda.bindings, runtime.cuda.pycuda, runtime.backends.tensorrt, runtime.backends.onnxruntime_cuda",
        "import edge.cli",
        "import converters.cli",
        "import edge.cli\ntry:\n    edge.cli.program.app(['run', '--help'])\nexcept SystemExit:\n    pass",
        "import edge.doctor; edge.doctor.examine()",
    ],
)
def test_import__stays_light(program: str) -> None:
    assert modules_after(program).isdisjoint(_HEAVY)


def test_import__engines_and_signatures_load_their_packages_on_use() -> None:
    loaded = modules_after(
        "import runtime.swap, runtime.signature, runtime.tensorrt.engine_cache, runtime.cuda.bindings, runtime.cuda.pycuda\n"
        "import runtime.cuda.nvrtc, runtime.backends.tensorrt, runtime.backends.onnxruntime_cuda"
    )
    assert loaded.isdisjoint({"tensorrt", "tensorrt_rtx", "cryptography", "cuda", "pycuda", "onnxruntime"})


def test_import__runtime_alone_loads_neither_numpy_nor_opencv() -> None:
    assert modules_after("import runtime").isdisjoint({"numpy", "cv2", "pydantic"})


def test_getattr__unknown_name_lists_the_known() -> None:
    import runtime

    with pytest.raises(AttributeError, match="it has Bundle, Detections"):
        _ = runtime.Nothing
