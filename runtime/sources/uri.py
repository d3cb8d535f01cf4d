"""URIs of cameras: which of them are live, and how they are told without their secrets."""

from __future__ import annotations

import re


def is_live(uri: str) -> bool:
    """Whether a URI names a device or a stream, whose frames are gone when nobody takes them."""
    return "://" in uri or uri.startswith("/dev/")


def redacted(text: str) -> str:
    """A URI, or a text with URIs, without users, passwords and queries, for logs."""
    return re.sub(r"(\w+://)(?:[^/\s\"']*@)?([^/\s\"'?]*[^\s\"'?]*)(\?[^\s\"']*)?", _redact, text)


def _redact(match: re.Match[str]) -> str:
    secret = "***@" if "@" in match[0] else ""
    return f"{match[1]}{secret}{match[2]}{'?***' if match[3] else ''}"
