"""The end of a process in which a library still works."""

from __future__ import annotations

import subprocess
import sys

import pytest

from runtime.bundle import Bundle
from tests.conftest import ROOT

LOADS_FOR_EVER = """
import sys, time
import onnxruntime
from runtime.cli import Program
from runtime.threads import LeftThread

program = Program("edge", "test")

@program.app.command()
def run(model: str, code: int):
    def load():
        while True:
            onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    for index in range(4):
        LeftThread(load, f"load-{index}").start()
    time.sleep(1)
    print("told")
    sys.exit(code)

program.run()
"""


@pytest.mark.parametrize("code", [0, 2])
def test_leave__an_engine_that_is_being_loaded_does_not_abort_the_end(bundle: Bundle, code: int) -> None:
    (model,) = bundle.path.glob("model.fp32.onnx")
    done = subprocess.run(
        [sys.executable, "-c", LOADS_FOR_EVER, str(model), str(code)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "told\n", "")
