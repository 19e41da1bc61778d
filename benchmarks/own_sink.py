"""A next hop that takes everything and keeps nothing, in clear or with STARTTLS; or one that is ill. A program of its own.

smtp-sink knows no TLS, one address only, and nothing of when a message arrived. This one counts messages and recipients in a
file that others map, and at its end writes how long each message was under way that bears the mark of own_source.py.
"""

import argparse
import array
import asyncio
import enum
import mmap
import signal
import socket
import ssl
import struct
import time
from pathlib import Path

import uvloop
from wire import Wire

COUNTS = struct.Struct("=qqq")
"""Messages, recipients, and the moment of the last message (monotonic clock, ns)."""

MARK = b"X-Sent: "
_DRIP_SECONDS = 1.0


class Behaviour(enum.StrEnum):
    """How it treats who calls."""

    WELL = "well"
    HANGS = "hangs"
    """Accepts the connection and never says a word."""
    DRIPS = "drips"
    """Says what is due, an octet a second."""
    STALLS = "stalls"
    """Takes the message and never answers its final dot."""


class Till:
    """What has arrived, over all connections."""

    def __init__(self, counts: Path, behaviour: Behaviour, context: ssl.SSLContext | None) -> None:
        with counts.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), COUNTS.size)
        self.behaviour = behaviour
        self.context = context
        self.seconds = array.array("d")
        self._messages = self._recipients = 0

    def take(self, recipients: int, sent_at: int) -> None:
        """One message more; `sent_at` is 0 when it bears no mark."""
        now = time.monotonic_ns()
        self._messages += 1
        self._recipients += recipients
        COUNTS.pack_into(self._map, 0, self._messages, self._recipients, now)
        if sent_at:
            self.seconds.append((now - sent_at) / 1e9)


class Call:
    """One connection's dialogue."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, till: Till) -> None:
        self._loop = loop
        self._till = till
        self._wire = Wire(loop, sock, self._received, lambda: None)
        self._buffer = b""
        self._is_content = False
        self._recipients = 0
        self._sent_at = 0
        self._dripping = b""
        self._offer = b"250-sink.bench.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n"
        self._starttls = b"250-STARTTLS\r\n" if till.context else b""
        self._say(b"220 sink.bench.test ESMTP\r\n")

    def _say(self, data: bytes) -> None:
        match self._till.behaviour:
            case Behaviour.HANGS:
                return
            case Behaviour.DRIPS:
                self._dripping += data
                if len(self._dripping) == len(data):
                    self._drip()
            case _:
                self._wire.send(data)

    def _drip(self) -> None:
        self._wire.send(self._dripping[:1])
        self._dripping = self._dripping[1:]
        if self._dripping:
            self._loop.call_later(_DRIP_SECONDS, self._drip)

    def _received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        replies: list[bytes] = []
        while buffer:
            if self._is_content:
                end = self._end_of_content(buffer)
                if end < 0:
                    break
                self._taken(replies)
            else:
                end = buffer.find(b"\r\n") + 2
                if end < 2:
                    break
                if self._command(buffer[:end], replies):
                    buffer = b""  # what stands behind STARTTLS in clear is nothing that we want to know
                    break
            buffer = buffer[end:]
        self._buffer = buffer
        if replies:
            self._say(replies[0] if len(replies) == 1 else b"".join(replies))

    def _end_of_content(self, buffer: bytes) -> int:
        """Behind the final dot, or -1 while it has not come. A mark stands in the header, which comes first."""
        end = len(buffer) if buffer.endswith(b"\r\n.\r\n") else buffer.find(b"\r\n.\r\n") + 5
        if end < 5:
            return -1
        found = buffer.find(MARK, 0, 2000)
        if found >= 0:
            self._sent_at = int(buffer[found + len(MARK) : buffer.index(b"\r", found)])
        return end

    def _taken(self, replies: list[bytes]) -> None:
        self._is_content = False
        if self._till.behaviour is Behaviour.STALLS:
            return
        self._till.take(self._recipients, self._sent_at)
        replies.append(b"250 2.0.0 Ok\r\n")

    def _command(self, line: bytes, replies: list[bytes]) -> bool:
        """Answers one command; True when TLS begins."""
        match line[:4].upper():
            case b"MAIL":
                self._recipients = self._sent_at = 0
                replies.append(b"250 2.1.0 Ok\r\n")
            case b"RCPT":
                self._recipients += 1
                replies.append(b"250 2.1.5 Ok\r\n")
            case b"DATA":
                self._is_content = True
                replies.append(b"354 Go on\r\n")
            case b"EHLO":
                replies.append(self._offer + self._starttls + b"250 ENHANCEDSTATUSCODES\r\n")
            case b"STAR" if self._till.context:
                self._wire.send(b"220 2.0.0 Go on\r\n")
                self._starttls = b""
                self._wire.start_tls(self._till.context, True, lambda: None)
                return True
            case b"QUIT":
                self._wire.send(b"".join(replies) + b"221 2.0.0 Bye\r\n")
                replies.clear()
                self._wire.close()
            case _:
                replies.append(b"250 2.0.0 Ok\r\n")
        return False


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM."""
    loop = asyncio.get_running_loop()
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate, options.key)
    till = Till(options.counts, Behaviour(options.behaviour), context)

    def accept(listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Call(loop, sock, till)

    listeners = []
    for address in options.addresses.split(","):
        listener = socket.create_server((address, options.port), backlog=1024)
        listener.setblocking(False)
        loop.add_reader(listener.fileno(), accept, listener)
        listeners.append(listener)
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    await told.wait()
    if options.times:
        options.times.write_bytes(till.seconds.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--addresses", default="127.0.0.1", help="where to listen, with commas")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--counts", type=Path, required=True, help="a file of 24 octets for the counters")
    parser.add_argument(
        "--times", type=Path, help="where to write, at the end, how many seconds messages were under way"
    )
    parser.add_argument("--behaviour", default=Behaviour.WELL, choices=list(Behaviour))
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
