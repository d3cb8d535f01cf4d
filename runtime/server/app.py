"""What the daemon serves: `/healthz`, `/readyz`, `/metrics`, `/api/status`; GET only, nothing is changed from outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.status import DaemonStatus

_MAX_BODY_BYTES = 65_536  # no route reads a body yet; what a proxy adds to a GET fits


@dataclass(frozen=True)
class Endpoints:
    """What the routes ask of the daemon. All are called in the server's one thread and must not wait for anything.

    Attributes:
        status: the daemon now.
        progressing: whether frames flow, or nothing keeps them from flowing; without it systemd's watchdog is not fed.
        metrics: the text for Prometheus and its content type.
    """

    status: Callable[[], DaemonStatus]
    progressing: Callable[[], bool]
    metrics: Callable[[], tuple[bytes, str]]

    async def healthz(self, _: Request) -> Response:
        """200 while the daemon makes progress; 503 with the reason when a restart would help, and while it stops."""
        status = self.status()
        if status.state == "stopping":
            return _unavailable("the daemon is stopping")
        if not self.progressing():
            return _unavailable("; ".join(["no frame was processed for too long", *status.troubles()]))
        return JSONResponse({"status": "ok"})

    async def readyz(self, _: Request) -> Response:
        """200 once the engine is warm and a camera runs; else 503 with the reason."""
        status = self.status()
        if status.state not in ("running", "reloading"):
            return _unavailable(f"the daemon is {status.state}")
        if status.model is None:
            return _unavailable("the engine is not warm yet")
        if not any(camera.state == "running" for camera in status.cameras):
            return _unavailable("; ".join(["no camera runs", *status.troubles()]))
        return JSONResponse({"status": "ok"})

    async def prometheus(self, _: Request) -> Response:
        """What Prometheus scrapes."""
        text, content_type = self.metrics()
        return Response(text, headers={"content-type": content_type})

    async def api_status(self, _: Request) -> Response:
        """The whole `DaemonStatus`."""
        return JSONResponse(self.status().as_dict())


def build_app(endpoints: Endpoints) -> ASGIApp:
    """The application; new routes are added here."""
    routes = {
        "/healthz": endpoints.healthz,
        "/readyz": endpoints.readyz,
        "/metrics": endpoints.prometheus,
        "/api/status": endpoints.api_status,
    }
    return _Guard(Starlette(routes=[Route(path, endpoint, methods=["GET"]) for path, endpoint in routes.items()]))


class _Guard:
    """Refuses a request whose body is large or of unknown length before anything of it is read; ends quietly with the server."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        response: Response | None = None
        if b"transfer-encoding" in headers:
            response = PlainTextResponse("a Content-Length is required", 411, {"connection": "close"})
        elif int(headers.get(b"content-length", b"0")) > _MAX_BODY_BYTES:  # h11 lets only digits through
            response = PlainTextResponse(f"a body may hold {_MAX_BODY_BYTES} bytes", 413, {"connection": "close"})
        with contextlib.suppress(asyncio.CancelledError):  # a client that hangs while the server stops is no defect of ours
            await (response or self._app)(scope, receive, send)


def _unavailable(reason: str) -> Response:
    return JSONResponse({"status": "unavailable", "reason": reason}, status_code=503)
