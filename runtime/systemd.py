"""sd_notify(3) in pure Python: tells systemd that the daemon is ready, reloading, alive or stopping."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)


class Notifier:
    """Sends the daemon's state to the service manager; does nothing where none listens.

    No call ever raises or waits: a manager that cannot be reached is told once in the log.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        """Takes the address from NOTIFY_SOCKET (a path, or `@name` in the abstract namespace) of `environ`, by default the process's own."""
        self._address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
        self._told = False

    def ready(self, status: str = "running") -> None:
        """The daemon is up, or done with reloading."""
        self._send("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        """The configuration is being read again; `ready` must follow."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_line(text)}")

    def watchdog(self) -> None:
        """The daemon makes progress; due every `watchdog_interval_s()`."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The daemon is shutting down."""
        self._send("STOPPING=1")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)  # a manager that hangs must not hold the camera loop
                sender.sendto("\n".join(assignments).encode("utf-8", "replace"), address)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            if not self._told:
                log.warning("systemd cannot be told %s: %s; detection goes on", assignments[0], error)
            self._told = True


def watchdog_interval_s(environ: Mapping[str, str] | None = None) -> float | None:
    """How often `Notifier.watchdog` is due, in seconds: half of what systemd waits. None where it does not wait for us."""
    environ = os.environ if environ is None else environ
    meant_for, waits_us = environ.get("WATCHDOG_PID", str(os.getpid())), environ.get("WATCHDOG_USEC", "")
    if meant_for != str(os.getpid()) or not waits_us.isascii() or not waits_us.isdigit() or int(waits_us) == 0:
        return None
    return int(waits_us) / 2e6


def _line(text: str) -> str:
    return " ".join(text.split())  # a second line would be a second assignment
