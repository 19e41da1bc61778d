"""A client that sends mail by many sessions at once, in clear or after STARTTLS, as fast as it is taken or at a set rate.

A program of its own. Like smtp-source it does not pipeline: each command waits for its reply. It prints one JSON document: how
long the whole took, and percentiles of the time from the end of data to the 250. Each message bears the moment in which it
was sent, for own_sink.py.
"""

import argparse
import asyncio
import collections
import json
import socket
import ssl
import sys
import time

import uvloop
from own_sink import MARK
from wire import Wire

_LINE = b"x" * 76 + b"\r\n"


def percentile(values: list[float], part: float) -> float:
    """The value that `part` of all do not exceed; 0 for none."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))] if values else 0.0


def text_of(size: int) -> bytes:
    """Header and body of a message of about `size` octets, behind its mark."""
    header = b"From: a@src.test\r\nTo: b@dst.test\r\nSubject: load\r\nMessage-ID: <1@src.test>\r\n\r\n"
    lines, rest = divmod(max(size - len(header) - 30, 0), len(_LINE))
    return header + _LINE * lines + (b"x" * max(rest - 2, 1)) + b"\r\n.\r\n"


class Source:
    """All sessions, and what is left to send."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.text = text_of(options.size)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if options.tls else None
        if self.context is not None:
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE
        self.recipients = collections.deque(f"RCPT TO:<{one}>\r\n".encode() for one in options.to.split(","))
        self.left = options.count
        self.unacknowledged = options.count
        self.answer_seconds: list[float] = []
        self.idle: collections.deque[Session] = collections.deque()
        self.planned: collections.deque[float] = collections.deque()
        self.session_seconds: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[None] = self._loop.create_future()
        self._done: asyncio.Future[None] = self._loop.create_future()

    def fail(self, words: str) -> None:
        """Something went otherwise than planned: there is no result."""
        for future in (self._greeted, self._done):
            if not future.done():
                future.set_exception(RuntimeError(words))

    def is_greeted(self, session: "Session") -> None:
        """A session that is kept can be used; when all can, the clock starts."""
        self.idle.append(session)
        if len(self.idle) == self.options.sessions:
            self._greeted.set_result(None)

    def recipient(self) -> bytes:
        """The next RCPT, in turn."""
        self.recipients.rotate(-1)
        return self.recipients[0]

    def is_free(self, session: "Session") -> None:
        """A session may send: at once when there is something, else when its time comes."""
        if self.options.rate:
            if self.planned:
                session.begin(self.planned.popleft())
            else:
                self.idle.append(session)
        elif self.left:
            self.left -= 1
            session.begin(time.perf_counter())

    def acknowledged(self) -> None:
        """One message got its 250."""
        self.unacknowledged -= 1
        if not self.unacknowledged and not self._done.done():
            self._done.set_result(None)

    def tick(self, number: int, began: float) -> None:
        """Message `number` of a set rate is due."""
        now = time.perf_counter()
        while number < self.options.count and began + number / self.options.rate <= now:
            planned = began + number / self.options.rate
            number += 1
            if self.idle:
                self.idle.popleft().begin(planned)
            elif self.options.single:
                Session(self, planned)
            else:
                self.planned.append(planned)
        if number < self.options.count:
            self._loop.call_later(began + number / self.options.rate - now, self.tick, number, began)

    async def run(self) -> float:
        """Sends all; the seconds from the first to the last 250. Sessions that are kept are made before the clock starts."""
        options = self.options
        kept = [] if options.single else [Session(self, 0.0) for _ in range(options.sessions)]
        if kept:
            await self._greeted
        began = time.perf_counter()
        if options.rate:
            self.tick(0, began)
        elif kept:
            for session in kept:
                self.is_free(session)
        else:
            for _ in range(options.sessions):
                self.next_single()
        await self._done
        return time.perf_counter() - began

    def next_single(self) -> None:
        """Opens the next of the sessions with one message each."""
        if not self.options.rate and self.left:
            self.left -= 1
            Session(self, time.perf_counter())


class Session:
    """One connection to the server under test."""

    def __init__(self, source: Source, planned: float) -> None:
        self._source = source
        self._planned = planned
        self._loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect_ex((source.options.address, source.options.port))
        self._next = self._on_banner
        self._code = b"220"
        self._buffer = b""
        self._ended_at = 0.0
        self._is_over = False
        self._wire = Wire(self._loop, sock, self._received, self._lost)

    def begin(self, planned: float) -> None:
        """Sends one message."""
        self._planned = planned
        self._say(b"MAIL FROM:<a@src.test>\r\n", b"250", self._on_mail)

    def _say(self, line: bytes, code: bytes, then) -> None:
        self._code, self._next = code, then
        self._wire.send(line)

    def _received(self, data: bytes) -> None:
        if self._buffer:
            data = self._buffer + data
        if not data.endswith(b"\n") or data[data.rfind(b"\n", 0, -1) + 4 :][:1] == b"-":
            self._buffer = data  # a reply that is not there whole
            return
        self._buffer = b""
        if data.startswith(self._code):
            self._next()
        else:
            self._source.fail(f"the server said {data!r} where {self._code.decode()} was expected")

    def _on_banner(self) -> None:
        context = self._source.context
        self._say(b"EHLO client.bench.test\r\n", b"250", self._on_hello if context is None else self._on_first_hello)

    def _on_first_hello(self) -> None:
        self._say(b"STARTTLS\r\n", b"220", self._on_starttls)

    def _on_starttls(self) -> None:
        def again() -> None:
            self._say(b"EHLO client.bench.test\r\n", b"250", self._on_hello)

        self._wire.start_tls(self._source.context, False, again)

    def _on_hello(self) -> None:
        if self._source.options.single:
            self.begin(self._planned)
        else:
            self._source.is_greeted(self)

    def _on_mail(self) -> None:
        self._say(self._source.recipient(), b"250", self._on_rcpt)

    def _on_rcpt(self) -> None:
        self._say(b"DATA\r\n", b"354", self._on_data)

    def _on_data(self) -> None:
        self._ended_at = time.perf_counter()
        mark = MARK + str(time.monotonic_ns()).encode() + b"\r\n"
        self._say(mark + self._source.text, b"250", self._on_dot)

    def _on_dot(self) -> None:
        source = self._source
        now = time.perf_counter()
        source.answer_seconds.append(now - self._ended_at)
        source.session_seconds.append(now - self._planned)
        source.acknowledged()
        if source.options.single:
            self._say(b"QUIT\r\n", b"221", self._on_quit)
        else:
            source.is_free(self)

    def _on_quit(self) -> None:
        self._is_over = True
        self._wire.close()
        self._source.next_single()

    def _lost(self) -> None:
        if not self._is_over:
            self._source.fail("the server closed a connection")


async def send(options: argparse.Namespace) -> int:
    source = Source(options)
    try:
        seconds = await source.run()
    except RuntimeError as error:
        print(f"own_source: {error}", file=sys.stderr)
        return 1
    answers, whole = source.answer_seconds, source.session_seconds
    print(
        json.dumps(
            {
                "count": options.count,
                "seconds": seconds,
                "answer_p50_ms": percentile(answers, 0.5) * 1000,
                "answer_p99_ms": percentile(answers, 0.99) * 1000,
                "answer_most_ms": max(answers) * 1000,
                "whole_p50_ms": percentile(whole, 0.5) * 1000,
                "whole_p99_ms": percentile(whole, 0.99) * 1000,
            }
        )
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--to", default="b@dst.test", help="recipients, with commas; each message has the next one")
    parser.add_argument("--rate", type=float, default=0, help="messages a second; 0: as fast as they are taken")
    parser.add_argument("--single", action="store_true", help="one message a session")
    parser.add_argument("--tls", action="store_true", help="STARTTLS first")
    return uvloop.run(send(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
