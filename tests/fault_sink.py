"""A next hop of the fault programme, in a process of its own: logs each recipient of each message before it answers 250.

    python fault_sink.py PORT LOG

A real server's behaviour in little: PIPELINING, 8BITMIME, SIZE, a transaction at a time, 550 for recipients named
`refuse...`, and for every recipient named `later...` a 451 the first time it sees a message. Notices (null reverse-path) are
logged under the message that they are about. What it has logged it never forgets, whatever happens to the relay.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from fault_load import Client
from fault_oracle import Arrival, arrivals_in, id_within, identify
from fault_sabotage import python_path
from peer_programs import free_port, greets, wait_until

ADDRESS = "127.0.0.1"
_EHLO = b"250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE 100000000\r\n"


class SinkSession(asyncio.Protocol):
    """One connection; `fault_next_hop` has ones that misbehave."""

    open_sessions = 0
    """Connections of whose octets not all have been read yet, those of the dead among them."""

    def __init__(self, log: int, put_off: set[str]) -> None:
        self._log = log
        self._put_off = put_off
        self._buffer = bytearray()
        self._scanned = 0
        self._is_data = False
        self._is_open = False
        self._reverse_path = ""
        self._recipients: list[str] = []
        self.is_answering = True
        """What is taken will be answered for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        SinkSession.open_sessions += 1
        if greeting := self.greeting():
            transport.write(greeting)

    def greeting(self) -> bytes:
        """What it says first."""
        return b"220 sink.test ESMTP\r\n"

    def connection_lost(self, exc: Exception | None) -> None:
        SinkSession.open_sessions -= 1

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        answers: list[bytes] = []
        while (answer := self._take()) is not None:
            answers.append(answer)
        if answers:
            self._transport.write(b"".join(answers))
            if answers[-1].startswith(b"221 "):
                self._transport.close()

    def _take(self) -> bytes | None:
        if self._is_data:
            return self._take_content()
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 2]
        return self._command(line)

    def _take_content(self) -> bytes | None:
        if self._buffer.startswith(b".\r\n"):
            end, skip = 0, 3
        else:
            end, skip = self._buffer.find(b"\r\n.\r\n", max(0, self._scanned - 5)), 5
            if end < 0:
                self._scanned = len(self._buffer)
                return None
            end += 2
            skip = 3
        content = bytes(self._buffer[:end])
        del self._buffer[: end + skip]
        self._scanned = 0
        self._is_data = self._is_open = False
        return self._keep(content)

    def _keep(self, stuffed: bytes) -> bytes:
        content = stuffed.replace(b"\r\n..", b"\r\n.")
        if content.startswith(b".."):
            content = content[1:]
        name, octets_digest = identify(content)
        recipients, self._recipients = self._recipients, []
        if any(r.startswith("later") for r in recipients) and name not in self._put_off:
            self._put_off.add(name)
            return b"451 4.2.0 later\r\n"
        is_notice = not self._reverse_path
        if is_notice:
            name, octets_digest = id_within(content), ""
        now = time.monotonic()
        lines = [
            Arrival(now, name, recipient, octets_digest, is_notice, self.is_answering).line()
            for recipient in recipients
        ]
        os.write(self._log, b"".join(lines))  # survives our own death; the faults do not reach this file's disk
        return b"250 2.0.0 taken\r\n"

    def _command(self, line: bytes) -> bytes:
        verb = line[:4].upper()
        if verb in {b"EHLO", b"HELO"}:
            return _EHLO
        if verb == b"MAIL":
            self._reverse_path = line[line.find(b"<") + 1 : line.find(b">")].decode()
            self._recipients = []
            self._is_open = True
            return b"250 2.1.0 ok\r\n"
        if verb == b"RCPT":
            if not self._is_open:
                return b"503 5.5.1 MAIL first\r\n"
            recipient = line[line.find(b"<") + 1 : line.find(b">")].decode()
            if recipient.startswith("refuse"):
                return b"550 5.1.1 no such mailbox\r\n"
            self._recipients.append(recipient)
            return b"250 2.1.5 ok\r\n"
        if verb == b"DATA":
            if not self._recipients:
                return b"503 5.5.1 no recipients\r\n"
            self._is_data = True
            return b"354 go on\r\n"
        if line == b"XOPEN":
            return b"250 %d\r\n" % SinkSession.open_sessions
        if verb == b"RSET":
            self._recipients = []
            self._is_open = False
        elif verb == b"QUIT":
            return b"221 2.0.0 bye\r\n"
        return b"250 2.0.0 ok\r\n"


async def _serve(port: int, log: Path) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    put_off: set[str] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SinkSession(descriptor, put_off), ADDRESS, port, backlog=1024)
    await server.serve_forever()


class Sink:
    """A running next hop; `arrivals` is what it has logged."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log

    @property
    def url(self) -> str:
        """As a route's next hop."""
        return f"smtp://{ADDRESS}:{self.port}"

    def wait_until_all_is_read(self, at_most: int = 0) -> None:
        """Returns when no more than `at_most` connections are left: what the dead had sent is in the log, or never will be."""
        with contextlib.closing(Client(self.port)) as client:
            wait_until(lambda: int(client.say("XOPEN").split()[1]) <= at_most + 1, "the sink to read everything")

    def arrivals(self) -> list[Arrival]:
        """Everything so far."""
        return list(arrivals_in(self.log))


@contextlib.contextmanager
def sink(directory: Path, port: int = 0) -> Iterator[Sink]:
    """A next hop for as long as the block. Its log is `directory`/sink.log, continued if it is there."""
    port = port or free_port(ADDRESS)
    log = directory / "sink.log"
    log.touch()
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(port), str(log)],
        env={**os.environ, "PYTHONPATH": python_path()},
        start_new_session=True,
    )
    try:
        wait_until(lambda: greets(ADDRESS, port), "the sink to listen")
        yield Sink(port, log)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), Path(sys.argv[2])))
