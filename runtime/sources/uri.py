"""What the address of a camera says, and how it is shown without its secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping

# To the last @ of the word: a password may hold /, ?, : or quotes that its owner never encoded. What is hidden too much
# harms nobody. Anchored at ://, so that a long text without any address takes linear time.
_ADDRESS = re.compile(r"://(\S*@)?([^\s?\"']*)(\?[^\s\"']*)?")

# How GStreamer's elements are given theirs: rtspsrc user-id=… user-pw=….
_SECRET = re.compile(
    r"((?:user-id|user-pw|proxy-id|proxy-pw|password|passphrase|extra-headers)\s*=\s*)(?:\"[^\"]*\"|'[^']*'|\S+)"
)

# user:password@ where the address itself is mistyped (rtsp:/joe:secret@host).
_LOOSE = re.compile(r"[^\s/:@\"',=]{1,64}:[^\s/@\"',]{1,128}@")  # bounded, so that long texts take linear time


def is_live(uri: str) -> bool:
    """Whether a URI names a device or a stream, whose frames are gone when nobody takes them."""
    return "://" in uri or uri.startswith("/dev/")


def redacted(text: str) -> str:
    """A URI, or a text with URIs, without users, passwords and queries, for logs; twice changes nothing more.

    Each URI ends at white space, so what follows one without a space may be hidden with it.
    """
    text = _LOOSE.sub("***@", _SECRET.sub(r"\1***", text))
    return _ADDRESS.sub(lambda found: f"://{'***@' if found[1] else ''}{found[2]}{'?***' if found[3] else ''}", text)


def redacted_values(value: object) -> object:
    """A JSON-like value with every text in it redacted: dicts (their values), lists and tuples (as lists)."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, Mapping):
        return {key: redacted_values(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted_values(item) for item in value]
    return value
