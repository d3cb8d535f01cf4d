"""Threads that may be inside an engine, a driver or a library when the process ends, and the end that leaves them there."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Any


class LeftThread(threading.Thread):
    """A daemon thread whose library nobody can interrupt: whoever stops it waits a while and leaves it."""

    def __init__(self, target: Callable[..., object], name: str, args: tuple[Any, ...] = ()) -> None:
        super().__init__(target=target, args=args, name=name, daemon=True)


def leave(code: int) -> None:
    """Ends the process: as Python does it, or at once where a `LeftThread` still runs.

    Until Python 3.14 (gh-87135) a thread that comes back from C++ to an interpreter that is shutting down is unwound through
    code that allows no exception, which aborts the process: a clean end would look like a crash. Whatever the program has to
    save must be saved by then, since no exit handler runs.
    """
    if any(isinstance(thread, LeftThread) for thread in threading.enumerate()):
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            try:
                if stream is not None:  # closed before we began
                    stream.flush()
            except (OSError, ValueError):  # nobody reads it any more, or it is closed
                code = code or 1
        os._exit(code)
    sys.exit(code)
