"""What the daemon does about signals."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ONE_REQUEST_S = 1.0  # `timeout` and terminals signal the process and its group: that is one request


@contextmanager
def ending_signals(stop: Callable[[], None], reload: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop`, and a later one ends the process at once; SIGHUP calls `reload`.

    Nothing is installed off the main thread, where Python allows it to nobody.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked_s: list[float] = []

    def end(number: int, _: FrameType | None) -> None:
        now_s = time.monotonic()
        if asked_s and now_s - asked_s[0] > _ONE_REQUEST_S:
            os.write(2, b"second signal: ending at once\n")
            os._exit(128 + number)
        asked_s.append(now_s)
        stop()

    handlers = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: lambda *_: reload()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
