"""Where results go: one file a kind, same verbs. Sinks run on one thread of their own and never hold up inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from runtime.config import JsonlConfig, PicturesConfig, SinkConfig
from runtime.pipeline import Result
from runtime.sinks.jsonl import JsonlSink
from runtime.sinks.pictures import PicturesSink


class Sink(Protocol):
    """Takes results, one at a time, in order."""

    def emit(self, result: Result) -> None:
        """Writes one result."""
        ...

    def close(self) -> None:
        """Flushes and releases."""
        ...


def _jsonl(config: JsonlConfig, class_names: list[str]) -> Sink:
    return JsonlSink(config.path, class_names)


def _pictures(config: PicturesConfig, class_names: list[str]) -> Sink:
    return PicturesSink(config.path, class_names, config.every_n, config.limit)


_OPEN: dict[str, Callable[[Any, list[str]], Sink]] = {"jsonl": _jsonl, "pictures": _pictures}


def open_sink(config: SinkConfig, class_names: list[str]) -> Sink:
    """Opens the sink that the configuration names.

    Raises:
        SinkError: it cannot be written.
    """
    return _OPEN[config.kind](config, class_names)
