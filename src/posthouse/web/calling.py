"""The test by calling over a bare TCP port: `nc tester 8026`. Whoever connects is tested, and sees it happen.

As `telnet relay-test.mail-abuse.org` once did. Nothing is read: what the caller sends means nothing, least of all an address.
"""

import asyncio
import contextlib
import socket
from collections import Counter

from posthouse.observe import log
from posthouse.policy.networks import NetworkError, parse_address
from posthouse.web.problem import Problem
from posthouse.web.rate import rate_key
from posthouse.web.service import STREAMS_PER_CLIENT, Service
from posthouse.web.stream import as_lines

MOST_CALLERS = 500
_WRITE_SECONDS = 60.0
"""A caller who reads nothing for so long is let go."""


class CallServer:
    """The server on that port."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._server: asyncio.Server | None = None
        self._callers: Counter[str] = Counter()
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self, listening: socket.socket) -> None:
        """Accepts on a listening socket from now on."""
        self._server = await asyncio.start_server(self._answer, sock=listening, limit=4096)

    async def stop(self) -> None:
        """Stops listening, and ends those calls that are still there."""
        if self._server is not None:
            self._server.close()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        reading = asyncio.create_task(_drain(reader))
        try:
            await self._talk(writer)
        except (OSError, TimeoutError) as error:
            log.debug("web-caller-lost", error=type(error).__name__)
            writer.transport.abort()
        finally:
            reading.cancel()
            with contextlib.suppress(OSError):
                writer.close()

    async def _talk(self, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        try:
            address = parse_address(str(peer[0]).partition("%")[0])
        except (NetworkError, TypeError, IndexError):
            return  # gone already
        key = rate_key(address)
        if self._callers[key] >= STREAMS_PER_CLIENT or self._callers.total() >= MOST_CALLERS:
            writer.write(b"no test: too many calls at once; try again later\n")
            return
        self._callers[key] += 1
        try:
            job = self.service.test_caller(address)
            async for chunk in as_lines(job, self.service.settings.url):
                writer.write(chunk)
                async with asyncio.timeout(_WRITE_SECONDS):
                    await writer.drain()
        except Problem as problem:
            writer.write(f"no test: {problem.detail}\n".encode())
        finally:
            self._callers[key] -= 1
            if not self._callers[key]:
                del self._callers[key]


async def _drain(reader: asyncio.StreamReader) -> None:
    """Reads and forgets, so that what the caller types does not become a reset when we close."""
    with contextlib.suppress(OSError):
        while await reader.read(4096):
            pass
