"""Progress of long work on stderr: a bar where someone watches, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

Report = Callable[[str], object]  # told each step of something long, a line at a time

_BAR = 24
_TERMINAL_S, _LOG_S = 0.2, 15.0  # how often a bar is redrawn, and how often a log gets a line


class Progress:
    """Counts up to `total`; use it in a `with`."""

    def __init__(self, title: str, total: int, *, shown: bool = True) -> None:
        """Not shown, it only counts: of several processes one tells."""
        self._title, self._total, self._wanted = title, max(1, total), shown
        self._done, self._start, self._shown = 0, time.monotonic(), 0.0
        self._live = shown and sys.stderr.isatty()

    def __enter__(self) -> Progress:
        self._show("", force=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self._show("done", force=True)
        if self._live:
            sys.stderr.write("\n")

    def advance(self, note: str = "", steps: int = 1) -> None:
        """Counts on; `note` is shown beside the bar."""
        self._done += steps
        self._show(note, force=False)

    def reach(self, done: int, note: str = "") -> None:
        """Sets the count, where something else counts."""
        self._done = done
        self._show(note, force=False)

    def _show(self, note: str, *, force: bool) -> None:
        now = time.monotonic()
        if not self._wanted:
            return
        if not force and now - self._shown < (_TERMINAL_S if self._live else _LOG_S):
            return
        self._shown = now
        share = min(1.0, self._done / self._total)
        elapsed_s = now - self._start
        left = f", {elapsed_s / share * (1 - share):.0f} s left" if 0 < share < 1 else ""
        bar = "█" * round(share * _BAR) + "░" * (_BAR - round(share * _BAR))
        text = f"{self._title} {bar} {self._done}/{self._total} {elapsed_s:.0f} s{left} {note}"
        sys.stderr.write(f"\r\033[K{text}" if self._live else f"{text}\n")
        sys.stderr.flush()
