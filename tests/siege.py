"""A listener under attack: real sessions on a loop and thread of their own, plain blocking sockets against it.

Whatever the attacker does, no exception may reach the event loop, and when it is gone nothing of it may be left: `besieged` and
`left_behind` hold every test to that.
"""

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import trustme
import uvloop

from posthouse.observe import metrics
from posthouse.relay.session import Verified
from posthouse.spool.sqlite import SqliteSpool
from serving import Served, serving
from spooling import SMALL

TO_ANYWHERE = b"MAIL FROM:<a@there.test>\r\nRCPT TO:<b@far.test>\r\n"
"""A transaction that only a trusted client may begin."""

LETTER = TO_ANYWHERE + b"DATA\r\n"
BODY = b"Subject: x\r\n\r\nhello\r\n"

_authority = trustme.CA()


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _authority.issue_cert("localhost").configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    _authority.configure_trust(context)
    return context


class Reset(Exception):
    """The server's end came as a reset."""


class Wire:
    """One attacker's connection."""

    def __init__(self, port: int, source: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.raw = socket.create_connection(("127.0.0.1", port), timeout=15, source_address=(source, 0))
        self.raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = tls.wrap_socket(self.raw, server_hostname="localhost") if tls else self.raw
        self._buffer = b""

    def send(self, octets: bytes, at_once: int = 0) -> None:
        """Sends; in packets of `at_once` octets where that is not 0."""
        if not at_once:
            self.sock.sendall(octets)
            return
        for start in range(0, len(octets), at_once):
            self.sock.sendall(octets[start : start + at_once])
            time.sleep(0.0005)

    def _more(self) -> bool:
        try:
            octets = self.sock.recv(65536)
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError) as error:
            raise Reset from error
        self._buffer += octets
        return bool(octets)

    def reply(self) -> str:
        """One reply, its lines joined; "" when the server has closed in good order. Reset when it has not."""
        lines: list[str] = []
        while True:
            line, end, rest = self._buffer.partition(b"\r\n")
            if not end:
                if not self._more():
                    return ""
                continue
            self._buffer = rest
            lines.append(line.decode())
            if line[3:4] != b"-":
                return "\n".join(lines)

    def say(self, line: str | bytes) -> str:
        self.send(line if isinstance(line, bytes) else line.encode() + b"\r\n")
        return self.reply()

    def hello(self) -> str:
        assert self.reply().startswith("220")
        return self.say("EHLO client.test")

    def ready_for_data(self, to: str = "b@far.test") -> None:
        """As far as 354."""
        self.hello()
        for line in ("MAIL FROM:<a@there.test>", f"RCPT TO:<{to}>"):
            assert self.say(line).startswith("250"), line
        assert self.say("DATA").startswith("354")

    def rest(self) -> list[str]:
        """All replies until the server closes."""
        return list(iter(self.reply, ""))

    def is_open(self) -> bool:
        """The session still answers."""
        return self.say("NOOP").startswith("250")

    def reset(self) -> None:
        """Vanishes without a word."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.sock.close()
        self.raw.close()


async def slowly_right(_login: str, _password: str, _client: str) -> Verified:
    await asyncio.sleep(0.15)
    return Verified(is_right=True)


class SlowSpool(SqliteSpool):
    """The disk takes its time."""

    def accept(self, envelope: Any, message: Any, durable: Any) -> None:
        asyncio.get_running_loop().call_later(0.1, super().accept, envelope, message, durable)


def slow_spool_in(directory: Path) -> Callable[[], SqliteSpool]:
    return lambda: SlowSpool(directory, 1, loop=asyncio.get_running_loop(), settings=SMALL)


class Siege:
    """What a test sees: wires to it, and what was taken."""

    def __init__(self, served: Served, loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext | None) -> None:
        self.served = served
        self.port = served.port
        self.faults: list[dict[str, Any]] = []
        self._loop = loop
        self._tls = tls
        self._wires: list[Wire] = []

    def wire(self, source: str = "127.0.0.1") -> Wire:
        wire = Wire(self.port, source, self._tls)
        self._wires.append(wire)
        return wire

    def wires(self, count: int, source: str = "127.0.0.1") -> list[Wire]:
        with ThreadPoolExecutor(8) as threads:
            return list(threads.map(lambda _: self.wire(source), range(count)))

    def ask(self, question: Callable[[], Any]) -> Any:
        """Asked in the loop's thread."""

        async def answer() -> Any:
            return question()

        return asyncio.run_coroutine_threadsafe(answer(), self._loop).result(10)

    def until(self, condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not self.ask(condition):
            assert time.monotonic() < end, f"waited {seconds} s for {what}"
            time.sleep(0.01)

    @property
    def contents(self) -> list[bytes]:
        return self.served.kept.contents

    def end(self) -> None:
        for wire in self._wires:
            wire.close()


@contextlib.contextmanager
def besieged(*, under_tls: bool = False, **options: Any) -> Iterator[Siege]:
    """A listener; at the end no connection, no count and no fault may be left."""
    name = options.setdefault("listener", uuid.uuid4().hex)
    if under_tls:
        context = server_context()
        options.update(tls=lambda: context, implicit_tls=True)
    is_ready, is_over = threading.Event(), asyncio.Event()
    found: list[Siege] = []
    trouble: list[BaseException] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        async with serving(**options) as served:
            siege = Siege(served, loop, client_context() if under_tls else None)
            loop.set_exception_handler(lambda _loop, context: siege.faults.append(context))
            found.append(siege)
            is_ready.set()
            await is_over.wait()

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        except BaseException as error:
            trouble.append(error)
        finally:
            is_ready.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    is_ready.wait(10)
    if trouble:
        raise trouble[0]
    siege = found[0]
    try:
        yield siege
        siege.end()
        left_behind(siege)
    finally:
        siege.end()
        siege._loop.call_soon_threadsafe(is_over.set)
        thread.join(10)
    assert not thread.is_alive()
    assert not trouble, trouble
    assert siege.faults == []
    assert metrics.sessions_open.values.get(name, 0) == 0


def left_behind(siege: Siege) -> None:
    """All wires are closed: nothing is left of them."""
    server = siege.served.server
    siege.until(lambda: not server.connections, "the connections to be gone")
    assert siege.ask(lambda: dict(server._per_client)) == {}
