"""What is wrong with a value of edge.yaml, in the words of who wrote it: what it is, and what it should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runtime.sources.uri import redacted

_MOST = 60  # characters of a value that are shown
_NAME = "letters, digits, - and _, at most 64 of them"

# By pydantic's error types; the values in braces are of their contexts.
_EXPECTED = {
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_pattern_mismatch": _NAME,
    "string_type": "a word (in quotes where it looks like a number)",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "keys with values",
    "model_type": "a block of keys",
    "model_attributes_type": "a block of keys",
    "list_type": "a list",
    "tuple_type": "a list",
    "union_tag_invalid": "kind: {expected_tags}, but got {tag!r}",
    "union_tag_not_found": "a block with the key kind",
}


def problem_of(errors: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for pydantic's errors about one place; several where it tried several types."""
    first = errors[0]
    if first["type"] == "missing":
        return "expected more values" if isinstance(first["loc"][-1], int) else "is missing"
    if first["type"] == "extra_forbidden":
        return "unknown key"
    if not all(error["type"] in _EXPECTED for error in errors):
        return "; ".join(str(error["msg"]).removeprefix("Value error, ") for error in errors)
    expected = dict.fromkeys(_EXPECTED[error["type"]].format(**_plain(error.get("ctx", {}))) for error in errors)
    return f"{_told(first['input'])}expected {', or '.join(expected)}"


def _told(value: object) -> str:
    if isinstance(value, str):
        shown = redacted(value)
        return f"is {shown if len(shown) <= _MOST else shown[:_MOST] + '…'!r}; "
    if isinstance(value, (bool, int, float)):
        return f"is {str(value).lower()}; "
    return "is empty; " if value in (None, {}, []) else ""


def _plain(context: Mapping[str, Any]) -> dict[str, Any]:
    """Limits as people write them: 1 and not 1.0."""
    return {key: int(value) if isinstance(value, float) and value.is_integer() else value for key, value in context.items()}
