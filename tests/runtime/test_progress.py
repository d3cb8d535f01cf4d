from __future__ import annotations

import pytest

from runtime.progress import Progress


def test_progress__tells_start_and_end_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("work", 3) as progress:
        for _ in range(3):
            progress.advance("note")
    told = capsys.readouterr()
    assert told.out == ""
    assert "work" in told.err
    assert "3/3" in told.err
