"""Keys that a YAML file names twice; PyYAML keeps the last without a word."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import yaml

_MERGE = "tag:yaml.org,2002:merge"  # `<<` may come twice: each brings other keys


@dataclass(frozen=True)
class DuplicateKey:
    """A key that its mapping has already.

    Attributes:
        path: the keys down to it, as written; items of a list by number.
        line: where it stands, from 1.
        first_line: where it stood first.
    """

    path: tuple[str, ...]
    line: int
    first_line: int


def duplicate_keys(tree: yaml.Node | None) -> list[DuplicateKey]:
    """All of them, in the order of the file; a part that is used by several aliases is looked at once."""
    return sorted(_below(tree, (), set()), key=lambda found: found.line)


def _below(node: yaml.Node | None, path: tuple[str, ...], visited: set[int]) -> Iterator[DuplicateKey]:
    if node is None or id(node) in visited:  # an alias may even lead back to where it stands
        return
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from _below(item, (*path, str(number)), visited)
    if isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in first_lines and key.tag != _MERGE:
                yield DuplicateKey((*path, name), line, first_lines[name])
            first_lines.setdefault(name, line)
            yield from _below(value, (*path, name), visited)
