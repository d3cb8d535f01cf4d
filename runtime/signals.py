"""What the daemon does about signals."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ending_signals(ending: threading.Event, stop: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`, and end the process at once when `ending` is set already; SIGHUP calls `reload`.

    Nothing is installed off the main thread, where Python allows it to nobody.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _: FrameType | None) -> None:
        if ending.is_set():
            os._exit(128 + number)
        stop()

    handlers = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: lambda *_: reload()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
