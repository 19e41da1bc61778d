"""HTTP over sockets that `serve` has bound: uvicorn with h11, and the patience of a public service."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from posthouse.observe import log

REQUEST_SECONDS = 15.0
"""How long a client may take to send a whole request head; uvicorn itself would wait for ever."""

MOST_CONNECTIONS = 2000
_HEAD_OCTETS = 16 * 1024


class PatientProtocol(H11Protocol):
    """A connection that must come to the point."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def handle_events(self) -> None:
        """Once a request is whole, or answered, the wait is for the next one (uvicorn's own keep-alive)."""
        super().handle_events()
        if self._deadline is not None and self._has_asked:
            self._deadline.cancel()
            self._deadline = None

    @property
    def _has_asked(self) -> bool:
        cycle: object = self.cycle  # None until there is a request, whatever its type says
        return cycle is not None

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        super().connection_lost(exc)

    def _give_up(self) -> None:
        if not self._has_asked and not self.transport.is_closing():
            self.transport.abort()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the supervisor's."""
        yield


class HttpServer:
    """The server of an application."""

    def __init__(self, app: ASGIApp) -> None:
        config = uvicorn.Config(
            app,
            http=PatientProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,  # web.caller decides whom to believe
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=2,
            h11_max_incomplete_event_size=_HEAD_OCTETS,
        )
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self, listening: list[socket.socket]) -> None:
        """Accepts on listening sockets from now on."""
        _forward_logs()
        self._task = asyncio.create_task(self._server.serve(sockets=listening))
        while not self._server.started:  # uvicorn tells nobody; with sockets at hand it is the next turn of the loop
            await asyncio.wait([self._task], timeout=0.01)
            if self._task.done():
                await self._task
                return

    async def stop(self) -> None:
        """Stops listening; open answers get a moment."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """uvicorn's errors into our log; what a client gets wrong is no error of ours."""
        fields: dict[str, Any] = {"words": record.getMessage()}
        if record.levelno >= logging.ERROR:
            log.error("web-server", **fields)
        else:
            log.debug("web-server", **fields)


def _forward_logs() -> None:
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers = [_Forward(logging.INFO)]
        logger.propagate = False
