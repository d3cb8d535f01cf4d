from __future__ import annotations

import pytest

from tests.runtime.tensorrt.stub_cut import COMMITTED, INSTALLED, cut


def test_cut__is_what_the_pinned_package_says() -> None:
    if not INSTALLED.is_file():
        pytest.skip("tensorrt-stubs is not fetched; run: make install-dev")
    assert COMMITTED.read_text(encoding="utf-8") == cut(INSTALLED.read_text(encoding="utf-8"))
