"""The end of a process in which a library still works."""

from __future__ import annotations

import re
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
    if code == 1:
        raise ZeroDivisionError("a mistake of ours")
    if code == 3:
        sys.stdout.close()
        sys.exit(0)
    print("told")
    sys.exit(code)

program.run()
"""


@pytest.mark.parametrize(
    ("code", "ended", "out", "told"),
    [
        (0, 0, "told\n", r"^$"),
        (2, 2, "told\n", r"^$"),
        (1, 1, "", r"(?s)^Traceback.*ZeroDivisionError: a mistake of ours\n$"),
        (3, 1, "", r"^$"),  # closed, so whether all of it arrived is unknown
    ],
)
def test_leave__an_engine_that_is_being_loaded_does_not_abort_the_end(
    bundle: Bundle, code: int, ended: int, out: str, told: str
) -> None:
    (model,) = bundle.path.glob("model.fp32.onnx")
    done = subprocess.run(
        [sys.executable, "-c", LOADS_FOR_EVER, str(model), str(code)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (ended, out)
    assert re.search(told, done.stderr)
