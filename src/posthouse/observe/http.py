"""HTTP over a server small enough to be read: one request a connection, and bounds for whoever connects."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from posthouse.observe import log

HEAD_OCTETS = 8192
_MOST_CLIENTS = 20

Answering = Callable[[bytes, bytes], Awaitable[bytes]]
"""From a request's head and body to a whole answer."""


async def serve_http(
    listening: socket.socket, answer: Answering, lost: str, seconds: float, body_octets: int = 0
) -> asyncio.Server:
    """Accepts on a listening socket from now on; `lost` is logged of a client that is gone.

    `seconds` is how long one may take to ask, and then to read; a body longer than `body_octets` is left unread.
    """
    clients = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal clients
        clients += 1
        try:
            if clients > _MOST_CLIENTS:
                return
            async with asyncio.timeout(seconds):
                head = await reader.readuntil(b"\r\n\r\n")
                length = _length(head) if body_octets else 0
                body = await reader.readexactly(length) if 0 < length <= body_octets else b""
            writer.write(await answer(head, body))
            async with asyncio.timeout(seconds):
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug(lost, error=type(error).__name__)
            writer.transport.abort()  # a client that does not read must not keep its descriptor
        finally:
            clients -= 1
            with contextlib.suppress(OSError):
                writer.close()

    return await asyncio.start_server(serve, sock=listening, limit=HEAD_OCTETS)


def _length(head: bytes) -> int:
    try:
        return int(field(head, "Content-Length") or 0)
    except ValueError as error:
        raise ConnectionAbortedError("its length is no number") from error


def field(head: bytes, name: str) -> str:
    """A header field's value, "" when it is not there."""
    wanted = name.lower()
    for line in head.decode("latin-1").split("\r\n")[1:]:
        key, _, value = line.partition(":")
        if key.strip().lower() == wanted:
            return value.strip() if value.isascii() else ""
    return ""


def response(status: str, body: bytes, kind: str = "text/plain; charset=utf-8", fields: str = "") -> bytes:
    """An answer. `fields` are further header fields, each with its CRLF."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{fields}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
