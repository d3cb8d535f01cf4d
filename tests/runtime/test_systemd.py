from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.systemd import Notifier, watchdog_interval_s


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, Notifier]]:
    """What systemd does: a datagram socket that the service is told by name."""
    name = f"@edgeloop-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0"))
        listener.settimeout(5)
        yield listener, Notifier({"NOTIFY_SOCKET": name})


def test_notifier__tells_a_whole_life(manager: tuple[socket.socket, Notifier]) -> None:
    listener, notifier = manager
    notifier.ready("2 cameras")
    notifier.status("gate stalled")
    notifier.watchdog()
    notifier.stopping()
    told = [listener.recv(1000) for _ in range(4)]
    assert told == [b"READY=1\nSTATUS=2 cameras", b"STATUS=gate stalled", b"WATCHDOG=1", b"STOPPING=1"]


def test_notifier__reloading_says_when(manager: tuple[socket.socket, Notifier]) -> None:
    listener, notifier = manager
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    first, second = listener.recv(1000).decode().split("\n")
    assert first == "RELOADING=1"
    assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def test_notifier__a_status_cannot_forge_an_assignment(manager: tuple[socket.socket, Notifier]) -> None:
    listener, notifier = manager
    notifier.status("camera lost\nSTOPPING=1")
    assert listener.recv(1000) == b"STATUS=camera lost STOPPING=1"


@pytest.mark.parametrize("address", ["/nowhere/notify", "x" * 500, "/a\0b", "vsock:2:1"])
def test_notifier__an_unreachable_manager_is_told_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.watchdog()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_notifier__a_manager_that_does_not_read_holds_nobody(manager: tuple[socket.socket, Notifier]) -> None:
    _, notifier = manager
    for _ in range(5000):  # far more than the socket's queue
        notifier.watchdog()


def test_notifier__without_a_manager_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    Notifier({}).ready()
    assert not caplog.records


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({"WATCHDOG_USEC": "120000000"}, 60.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_watchdog_interval_s__half_of_what_systemd_waits(environ: dict[str, str], interval_s: float | None) -> None:
    assert watchdog_interval_s(environ) == interval_s
