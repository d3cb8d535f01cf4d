"""Weights into a detector, file by file, counted and told: what a file does not have stays as it was."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from converters.checkpoint import load_checkpoint
from converters.errors import CheckpointError
from edge.lineage import seen_labels, with_seen
from edge.yolo import Part, inject

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

_NESTED = ("backbone", "neck", "localizer")  # each has all tensors of those before it, a detector those of all


@dataclass(frozen=True, slots=True)
class Injected:
    """What files gave.

    Attributes:
        kinds: of the files, in their order.
        lineage: theirs, the later over the earlier, all labels that one of them has seen, and how many tensors each gave.
    """

    kinds: tuple[str, ...]
    lineage: dict[str, str]


def inject_all(detector: DetectionModel, paths: Sequence[Path], model: str) -> Injected:
    """Injects files in their order, a detector before parts of one, and tells how many tensors each gave.

    Raises:
        CheckpointError: weights of another architecture, or a file that would replace all of one before it.
    """
    kinds: list[str] = []
    lineage: dict[str, str] = {}
    seen: frozenset[str] = frozenset()
    for path in paths:
        source = load_checkpoint(path)
        if kinds and _covered(source.kind) >= _covered(kinds[-1]):
            raise CheckpointError(
                f"--init {path}: its {source.kind} would replace all of {paths[len(kinds) - 1]}; name it before that, or leave "
                "one of them out"
            )
        try:
            told = inject(detector, source, model)
        except CheckpointError as error:
            raise CheckpointError(f"--init {path}: {error}") from error
        sys.stderr.write(f"injected {source.kind} {path}: {told}\n")
        kinds.append(source.kind)
        seen |= seen_labels(source.lineage)
        lineage |= {**source.lineage, f"init_{source.kind}": str(told)}
    return Injected(tuple(kinds), with_seen(lineage, seen))


def refuse_uncovered(part: Part, injected: Injected) -> None:
    """Features of a part are to be looked at: whether the files have given all of it.

    Raises:
        CheckpointError: some of it has fresh weights still.
    """
    if injected.kinds and max(map(_covered, injected.kinds)) < _covered(part):
        raise CheckpointError(
            f"--part {part} has more layers than the {injected.kinds[0]} of --init, which gives it fresh ones; take --part "
            f"{injected.kinds[0]}, or name a detector first"
        )


def _covered(kind: str) -> int:
    return _NESTED.index(kind) if kind in _NESTED else len(_NESTED)
