from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.sources.uri import is_live, redacted, redacted_values


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://cam/x", "rtsp://cam/x"),
        ("rtsp://user:secret@cam:554/x lost", "rtsp://***@cam:554/x lost"),
        ("rtsp://user:se/cr?e't@cam/x", "rtsp://***@cam/x"),
        ("http://cam/mjpg?user=a&pwd=secret#1", "http://cam/mjpg?***"),
        ("rtsp://token@cam/x, then rtsp://b:c@gate/y", "rtsp://***@cam/x, then rtsp://***@gate/y"),
        ("gate at a@b has no address", "gate at a@b has no address"),
    ],
)
def test_redacted__addresses(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


PASSWORDS = st.text(
    st.characters(min_codepoint=33, exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]).filter(lambda c: not c.isspace()),
    min_size=1,
)


@given(password=PASSWORDS, before=st.text(), after=st.text(), path=st.sampled_from(["", "/", "/live?channel=1", "/a@b"]))
def test_redacted__no_password_survives(password: str, before: str, after: str, path: str) -> None:
    def said(secret: str) -> str:
        return redacted(f"{before} rtsp://admin:{secret}@cam{path} {after}")

    assert said(password) == said("another"), "what is shown must not depend on the password"


def test_redacted_values__keeps_the_shape() -> None:
    given_values = {"cameras": [{"uri": "rtsp://u:p@h/x", "fps": 5}], "on": (True, None)}
    assert redacted_values(given_values) == {"cameras": [{"uri": "rtsp://***@h/x", "fps": 5}], "on": [True, None]}


@pytest.mark.parametrize(
    ("uri", "live"), [("rtsp://cam/x", True), ("/dev/video0", True), ("videos/gate.mp4", False), ("/srv/dev/a.avi", False)]
)
def test_is_live__streams_and_devices(uri: str, *, live: bool) -> None:
    assert is_live(uri) is live


@pytest.mark.parametrize(
    "text", ["rtsp:/joe:leakpw@host/x", "joe:leakpw@1.2.3.4:554/x", "no such video file: joe:leakpw@h; check"]
)
def test_redacted__an_address_with_a_typo(text: str) -> None:
    assert "leakpw" not in redacted(text)


def test_redacted__json_stays_json() -> None:
    line = json.dumps({"uri": "rtsp://joe:secret@host/cam?token=abc", "loop": False})
    assert json.loads(redacted(line)) == {"uri": "rtsp://***@host/cam?***", "loop": False}


def test_redacted__what_gstreamer_is_given() -> None:
    assert redacted("rtspsrc location=rtsp://h/x user-id=joe user-pw=secret ! decodebin") == (
        "rtspsrc location=rtsp://h/x user-id=*** user-pw=*** ! decodebin"
    )
