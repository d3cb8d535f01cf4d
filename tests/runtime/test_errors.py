from __future__ import annotations

import pytest

from runtime.errors import first_line


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("what is wrong\nand more"), "what is wrong"),
        (ValueError(), "ValueError"),
        (
            RuntimeError(
                "Exception from src/core.cpp:132:\nException from src/plugin.cpp:58:\nDefault output not supported\n\n"
            ),
            "Default output not supported",
        ),
        (RuntimeError("/onnxruntime_src/a.cc:10 void onnxruntime::f(int) not so"), "not so"),
    ],
)
def test_first_line__says_what_is_wrong(error: Exception, told: str) -> None:
    assert first_line(error) == told
