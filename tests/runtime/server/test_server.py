from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse

import pytest

from runtime.errors import ServerError
from runtime.exposition import Exposition
from runtime.server.app import Endpoints
from runtime.server.thread import Server
from runtime.status import DaemonStatus, ModelStatus
from tests.runtime.test_imports import modules_after
from tests.runtime.test_status import GATE, STATUS, YARD

WARM = ModelStatus("ab", "onnxruntime", "int8")


@contextlib.contextmanager
def serving(status: Callable[[], DaemonStatus] = lambda: STATUS, *, progressing: bool = True) -> Iterator[Server]:
    server = Server("127.0.0.1", 0, Endpoints(status, lambda: progressing, Exposition(status).render))
    server.start()
    try:
        yield server
    finally:
        server.stop()
        assert not [thread for thread in threading.enumerate() if thread.name == "server"]


def ask(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


@pytest.mark.parametrize(
    ("status", "progressing", "code", "reason"),
    [
        (STATUS, True, 200, None),
        (STATUS, False, 503, "no frame was processed for too long; camera yard is reconnecting: rtsp://***@yard/x timed out"),
        (replace(STATUS, state="starting", model=None), True, 200, None),
        (replace(STATUS, state="stopping"), True, 503, "the daemon is stopping"),
    ],
)
def test_healthz__follows_progress(status: DaemonStatus, *, progressing: bool, code: int, reason: str | None) -> None:
    with serving(lambda: status, progressing=progressing) as server:
        response, body = ask(server, "/healthz")
    assert (response.status, json.loads(body).get("reason")) == (code, reason)


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (STATUS, 200, None),
        (replace(STATUS, state="reloading"), 200, None),
        (replace(STATUS, state="starting"), 503, "the daemon is starting"),
        (replace(STATUS, state="stopping"), 503, "the daemon is stopping"),
        (replace(STATUS, model=None), 503, "the engine is not warm yet"),
        (replace(STATUS, cameras=[YARD]), 503, "no camera runs; camera yard is reconnecting: rtsp://***@yard/x timed out"),
        (replace(STATUS, cameras=[replace(GATE, state="ended")]), 503, "no camera runs"),
    ],
)
def test_readyz__needs_a_warm_engine_and_a_camera(status: DaemonStatus, code: int, reason: str | None) -> None:
    with serving(lambda: status) as server:
        response, body = ask(server, "/readyz")
    assert (response.status, json.loads(body).get("reason")) == (code, reason)


def test_metrics__and_status_are_asked_anew() -> None:
    now = [STATUS]
    with serving(lambda: now[0]) as server:
        response, body = ask(server, "/metrics")
        assert response.getheader("content-type", "").startswith("text/plain")
        assert b'edgeloop_frames_captured_total{camera="gate"} 100.0' in body
        now[0] = replace(STATUS, cameras=[replace(GATE, read=101)])
        assert b'edgeloop_frames_captured_total{camera="gate"} 101.0' in ask(server, "/metrics")[1]
        shown = json.loads(ask(server, "/api/status")[1])
    assert shown == json.loads(json.dumps(now[0].as_dict()))
    assert "secret" not in str(shown)


@pytest.mark.parametrize(
    ("path", "method", "headers", "code"),
    [
        ("/nothing", "GET", {}, 404),
        ("/healthz", "POST", {}, 405),
        ("/api/status", "DELETE", {}, 405),
        ("/healthz", "GET", {"Content_Length": "70000"}, 413),
        ("/healthz", "GET", {"Transfer_Encoding": "chunked"}, 411),
    ],
)
def test_server__refuses(path: str, method: str, headers: dict[str, str], code: int) -> None:
    with serving() as server:
        response, _ = ask(server, path, method, **headers)
        assert response.status == code
        assert ask(server, "/healthz")[0].status == 200, "it goes on"


def test_server__headers_without_end_are_cut_off() -> None:
    with serving() as server, socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 20_000)
        assert client.recv(12) == b"HTTP/1.1 400"


def test_server__a_defect_of_one_route_is_a_500_and_no_end() -> None:
    def broken() -> DaemonStatus:
        raise RuntimeError("no status")

    server = Server("127.0.0.1", 0, Endpoints(broken, lambda: True, lambda: (b"fine", "text/plain")))
    server.start()
    assert ask(server, "/api/status")[0].status == 500
    assert ask(server, "/metrics")[1] == b"fine"
    server.stop()


def test_start__a_taken_port_is_told_at_once() -> None:
    with serving() as first:
        second = Server("127.0.0.1", first.port, Endpoints(lambda: STATUS, lambda: True, lambda: (b"", "")))
        with pytest.raises(
            ServerError, match=rf"cannot serve on 127\.0\.0\.1:{first.port}: Address already in use; set server"
        ):
            second.start()
        second.stop()
        assert ask(first, "/healthz")[0].status == 200


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "a" * 300, "ä..ö"])
def test_start__an_address_of_elsewhere_is_told(host: str) -> None:
    with pytest.raises(ServerError, match=r"cannot serve on .* an address of this machine"):
        Server(host, 0, Endpoints(lambda: STATUS, lambda: True, lambda: (b"", ""))).start()


def test_start__answers_from_the_first_moment() -> None:
    for _ in range(5):
        with serving() as server:
            assert ask(server, "/healthz")[0].status == 200


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTT", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_stop__ends_though_a_client_hangs(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    large = b"x" * 10_000_000  # more than the sockets hold for a client that does not read
    server = Server("127.0.0.1", 0, Endpoints(lambda: STATUS, lambda: True, lambda: (large, "text/plain")))
    server.start()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(said)
        assert ask(server, "/healthz")[0].status == 200
        server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "server"]
    assert not [record for record in caplog.records if record.exc_info], "no traceback for what a client does"


def test_stop__frees_the_port() -> None:
    with serving() as server:
        port = server.port
        ask(server, "/healthz")
    again = Server("127.0.0.1", port, Endpoints(lambda: STATUS, lambda: True, lambda: (b"", "")))
    again.start()
    assert ask(again, "/healthz")[0].status == 200
    again.stop()


def test_server__more_connections_than_allowed_are_refused_until_the_silent_ones_are_closed() -> None:
    server = Server("127.0.0.1", 0, Endpoints(lambda: STATUS, lambda: True, lambda: (b"", "")), silent_s=2)
    server.start()
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(40)]
    assert ask(server, "/healthz")[0].status == 503
    for client in silent:
        assert client.recv(1) == b"", "the server hung up"
        client.close()
    assert ask(server, "/healthz")[0].status == 200
    server.stop()


def test_server__is_imported_only_where_it_is_used() -> None:
    assert modules_after("import runtime.server.thread, runtime.status, runtime.systemd, runtime.telemetry.sampler").isdisjoint(
        {"starlette", "uvicorn", "prometheus_client", "pynvml"}
    )
