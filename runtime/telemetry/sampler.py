"""Looks at the device now and then, in a thread of its own, and keeps the latest look."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from runtime.telemetry.nvml import open_nvml
from runtime.telemetry.snapshot import Reader, Telemetry, merged
from runtime.telemetry.sysfs import SysfsReader
from runtime.telemetry.tegrastats import open_tegrastats
from runtime.threads import LeftThread

log = logging.getLogger(__name__)

DEFAULT_INTERVAL_S = 10.0  # heat moves in tens of seconds, and a scrape comes every 15 to 60
_OPENERS: tuple[Callable[[], Reader | None], ...] = (open_tegrastats, open_nvml, SysfsReader)  # whose word counts first


def open_readers() -> list[Reader]:
    """The readers that this device has."""
    readers: list[Reader] = []
    for opener in _OPENERS:
        try:
            if (reader := opener()) is not None:
                readers.append(reader)
        except Exception as error:  # noqa: BLE001  drivers fail in any way, and detection does not need them
            log.warning("telemetry: %s: %r; it goes on without", opener.__name__, error)
    return readers


class Readers:
    """Several readers as one; one that fails is told once, closed and left out."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._readers = list(readers)

    def read(self) -> Telemetry:
        """What all of them know now."""
        found: list[Telemetry] = []
        for reader in list(self._readers):
            try:
                found.append(reader.read())
            except Exception as error:  # noqa: BLE001  as above
                log.warning("telemetry: %s failed (%r) and is left out from now on", type(reader).__name__, error)
                self._readers.remove(reader)
                _close(reader)
        return merged(found)

    def close(self) -> None:
        """Closes all."""
        for reader in self._readers:
            _close(reader)
        self._readers.clear()


class TelemetrySampler:
    """A thread that looks every `interval_s` seconds.

    Attributes:
        latest: the latest look; an empty one before the first. Replaced whole, so any thread may take it.
    """

    def __init__(self, interval_s: float = DEFAULT_INTERVAL_S, opened: Callable[[], Sequence[Reader]] = open_readers) -> None:
        """`opened` is called in the thread, since a driver may take seconds to answer."""
        self.latest = Telemetry()
        self._interval_s, self._opened = interval_s, opened
        self._stop = threading.Event()
        self._thread = LeftThread(target=self._run, name="telemetry")

    def start(self) -> None:
        """Starts looking."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and closes the readers; one that hangs in a driver is left to the process's end after 2 s."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=2)

    def _run(self) -> None:
        readers = Readers(self._opened())
        while not self._stop.is_set():
            self.latest = readers.read()
            self._stop.wait(self._interval_s)
        readers.close()


def _close(reader: Reader) -> None:
    try:
        reader.close()
    except Exception as error:  # noqa: BLE001  a lost driver cannot be shut down either
        log.debug("telemetry: %s: %r", type(reader).__name__, error)
