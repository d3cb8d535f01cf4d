from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import sys
from runtime.cli import Program
program = Program("edge", "A test.")
@program.app.command()
def one(code: str) -> None:
    exec(code)
@program.app.command()
def other() -> None: ...
program.run()
"""


@pytest.mark.parametrize(
    ("fails", "told"),
    [
        (
            "sys.modules['onnx'] = None; import onnx.helper",
            "onnx is not installed; install it with: pip install 'edgeloop[convert]'",
        ),
        (
            "sys.modules['faster_coco_eval'] = None; import faster_coco_eval",
            "faster-coco-eval is not installed; install it with: pip install 'edgeloop[convert]'",
        ),
        ("sys.modules['torch'] = None; import torch", "torch is not installed; install it with: pip install 'edgeloop[train]'"),
        ("import json.none", "No module named 'json.none'; install edgeloop again, with the extras that you use"),
        (
            "raise ImportError('libGL.so.1: cannot open shared object file: No such file or directory')",
            "libGL.so.1: cannot open shared object file: No such file or directory; on Debian and Ubuntu: apt-get install libgl1 libglib2.0-0",
        ),
        (
            "raise ImportError('libcudart.so.12: cannot open shared object file')",
            "libcudart.so.12: cannot open shared object file; install edgeloop again, with the extras that you use",
        ),
    ],
)
def test_run__a_failed_import_says_what_to_install(fails: str, told: str) -> None:
    command = [sys.executable, "-c", PROGRAM, "one", fails]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, f"edge: {told}\n")


def test_run__ctrl_c_is_told() -> None:
    # A shell's background job, such as CI may be, ignores SIGINT and hands that down.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", PROGRAM, "one", f"import os, signal; {heard}; os.kill(os.getpid(), signal.SIGINT)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr.strip()) == (130, "edge: interrupted")


def test_run__sigterm_is_told() -> None:
    command = [sys.executable, "-c", PROGRAM, "one", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr.strip()) == (143, "edge: ended by SIGTERM")
