"""YAML that people write: the document, where its keys stand, and what is wrong with it, line by line."""

from __future__ import annotations

from typing import Any

import yaml

from runtime.errors import first_line


class NotYamlError(ValueError):
    """A text that is no YAML.

    Attributes:
        place: ":" and the line, from 1, to stand behind the file's name; empty where it is not known.
    """

    def __init__(self, reason: str, place: str) -> None:
        """What is wrong, in a few words, and where."""
        super().__init__(reason)
        self.place = place


def parse_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """The document, made of plain types, and its tree.

    Raises:
        NotYamlError: it cannot be parsed.
    """
    try:
        return yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date like 2024-13-45
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or first_line(error)
        raise NotYamlError(reason, f":{mark.line + 1}" if mark else "") from error
