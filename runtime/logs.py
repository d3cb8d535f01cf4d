"""Logs of the daemon: one line a record on stderr, as text or JSON, never with a camera's password in it."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Literal

LogForm = Literal["text", "json"]

log = logging.getLogger(__name__)

# What every record has; anything else came with `extra=`. asctime, message and taskName are set later, or by newer Pythons.
_STANDARD = frozenset({*vars(logging.makeLogRecord({})), "asctime", "message", "taskName"})


def configure_logging(form: LogForm = "text", level: int = logging.INFO) -> None:
    """Sends everything from `level` up to stderr, uncaught exceptions and warnings too; replaces what was set up before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(RedactFilter())
    handler.setFormatter(_FORMATTERS[form]())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


class RedactFilter(logging.Filter):
    """Takes users, passwords and queries out of every URL in a record: message, exception and extra fields."""

    def __init__(self) -> None:
        super().__init__()
        from runtime.sources.uri import redacted  # its package brings OpenCV

        self._redacted = redacted

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrites the record; keeps it always."""
        record.msg, record.args = self._redacted(_message(record)), None
        if record.exc_info:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        record.exc_text = self._redacted(record.exc_text) if record.exc_text else None
        record.stack_info = self._redacted(record.stack_info) if record.stack_info else None
        vars(record).update({name: self._plain(value) for name, value in _extra(record).items()})
        return True

    def _plain(self, value: object) -> object:
        """A value that JSON can hold, without secrets."""
        if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            return value
        if isinstance(value, Mapping):
            return {self._redacted(str(key)): self._plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        return self._redacted(str(value))


class TextFormatter(logging.Formatter):
    """`2026-11-22T07:44:00.123Z WARNING runtime.capture [capture-gate] stream lost camera=gate`, the exception behind it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a line break inside is shown as backslash and n."""
        head = f"{_utc(record)} {record.levelname} {record.name} [{record.threadName}] {record.getMessage()}"
        extra = [f"{name}={value}" for name, value in _extra(record).items()]
        return _one_line(" ".join([head, *extra, *_trouble(record)]))


class JsonFormatter(logging.Formatter):
    """One JSON object: time (ISO 8601, UTC), level, logger, thread, message, exception where there is one, extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; an extra field never replaces one of ours."""
        fields: dict[str, object] = {
            "time": _utc(record),
            "level": record.levelname,
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if trouble := _trouble(record):
            fields["exception"] = "\n".join(trouble)
        return json.dumps({**_extra(record), **fields})


_FORMATTERS: dict[LogForm, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001  logging's own report would print the arguments, passwords too
        return f"{record.msg} (and a log call whose arguments do not fit: {type(error).__name__})"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _trouble(record: logging.LogRecord) -> list[str]:
    return [text for text in (record.exc_text, record.stack_info) if text]


def _utc(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _one_line(text: str) -> str:
    return "\\n".join(text.splitlines())


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    log.critical("uncaught exception; please report this", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread else "unknown"
    trouble = (args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    log.critical("thread %s ended by an uncaught exception; please report this", name, exc_info=trouble)
