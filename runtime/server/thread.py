"""The HTTP server in one thread beside the frames."""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING

from runtime.errors import ServerError
from runtime.threads import LeftThread

if TYPE_CHECKING:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from runtime.server.app import Endpoints

log = logging.getLogger(__name__)

_CONNECTIONS = 32  # a scraper, probes and a few people; more get 503
_HEADER_BYTES = 16_384
_GRACE_S = 1  # for answers under way when the daemon ends
_STOP_S = 2.0
DEFAULT_SILENT_S = 30  # clients that vanished would fill _CONNECTIONS, and the probes be refused


class Server:
    """Serves the endpoints until it is stopped.

    Attributes:
        port: where it listens; after `start`, the real one where 0 was asked for.
    """

    def __init__(self, host: str, port: int, endpoints: Endpoints, silent_s: int = DEFAULT_SILENT_S) -> None:
        """`host` is a name or address of this machine, `port` 0 to 65535 (0: any free one).

        A connection that is without a request for `silent_s` seconds is closed before twice that time.
        """
        self.port = port
        self._silent_s = silent_s
        self._host, self._endpoints = host, endpoints
        self._server: uvicorn.Server | None = None
        self._thread: LeftThread | None = None
        self._silent: set[H11Protocol] = set()

    def start(self) -> None:
        """Listens at once and answers from a thread.

        Raises:
            ServerError: the address is taken or not of this machine.
        """
        listener = _listen(self._host, self.port)
        self.port = listener.getsockname()[1]
        self._server = self._build()
        self._thread = LeftThread(target=self._run, name="server", args=(self._server, listener))
        self._thread.start()
        log.info("serving http://%s:%d", self._host, self.port)

    def stop(self) -> None:
        """Closes all connections and ends the thread, within 2 s whatever the clients do."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(_STOP_S)
        if self._thread.is_alive():
            log.warning("the HTTP server does not end; it is left to the process's end")

    def _build(self) -> uvicorn.Server:
        import uvicorn  # with starlette, a tenth of a second that only those who serve should pay

        from runtime.server.app import build_app

        config = uvicorn.Config(
            build_app(self._endpoints),
            loop="asyncio",
            http="h11",  # the one whose header limit can be set
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="error",  # its warnings are about what clients do wrong, as often as they like
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_CONNECTIONS,
            limit_concurrency=_CONNECTIONS,
            h11_max_incomplete_event_size=_HEADER_BYTES,
            timeout_graceful_shutdown=_GRACE_S,
            timeout_notify=self._silent_s,
            callback_notify=self._close_silent,
        )
        return uvicorn.Server(config)

    def _run(self, server: uvicorn.Server, listener: socket.socket) -> None:
        import asyncio  # as above

        try:
            asyncio.run(self._serve(server, listener))
        except Exception:
            log.exception("the HTTP server ended; detection goes on")
        finally:
            listener.close()

    async def _serve(self, server: uvicorn.Server, listener: socket.socket) -> None:
        import asyncio

        await server.serve(sockets=[listener])
        for connection in list(server.server_state.connections):  # clients that did not read their answer in time
            connection.transport.abort()
        await asyncio.sleep(0)  # an aborted transport closes its socket in the next turn

    async def _close_silent(self) -> None:
        """Closes connections that had no request under way at this look and the one before."""
        from uvicorn.protocols.http.h11_impl import H11Protocol

        connections = self._server.server_state.connections if self._server else ()
        http = [one for one in connections if isinstance(one, H11Protocol)]
        silent = {one for one in http if one.cycle is None or one.cycle.response_complete}
        for connection in silent & self._silent:
            connection.transport.close()
        self._silent = silent - self._silent


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=_CONNECTIONS)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that is no host name
        # Some versions of Python append the address, which our sentence has.
        reason = str(error.strerror).partition(" (while")[0] if isinstance(error, OSError) else "no host name"
        raise ServerError(
            f"cannot serve on {host}:{port}: {reason}; set server.host and server.port in edge.yaml to an address of this "
            f"machine that is free (`ss -ltnp` shows who holds a port)"
        ) from error
