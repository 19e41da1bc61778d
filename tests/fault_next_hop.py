"""Next hops that misbehave at every stage, each on a port of its own, in one process with one log; told so, they mend.

    python fault_next_hop.py LOG PORT:STAGE:FAULT ...

SIGUSR1 mends all of them. Stages: greeting, hello, mail, rcpt, data, end. Faults: refuse (5yz), defer (4yz), leave (421 and
close), reset, close, hang, drip (one octet a second), garbage, early (the answer to a command not yet sent), lie (a
multi-line reply whose codes differ), huge (a reply without end). At the stage "end" the message may have been taken although no answer
says so: that is in the log as an arrival that was not answered.
"""

import asyncio
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvloop

from fault_sabotage import python_path
from fault_sink import ADDRESS, SinkSession
from peer_programs import free_port, greets, wait_until

STAGES = ("greeting", "hello", "mail", "rcpt", "data", "end")
FAULTS = ("refuse", "defer", "leave", "reset", "close", "hang", "drip", "garbage", "early", "lie", "huge")
_VERBS = {b"EHLO": "hello", b"HELO": "hello", b"MAIL": "mail", b"RCPT": "rcpt", b"DATA": "data"}


class _Mending:
    def __init__(self) -> None:
        self.is_done = False


class _BadSession(SinkSession):
    def __init__(self, log: int, put_off: set[str], stage: str, fault: str, mending: _Mending) -> None:
        super().__init__(log, put_off)
        self._stage = stage
        self._fault = fault
        self._mending = mending

    def greeting(self) -> bytes:
        return self._at("greeting", super().greeting())

    def _command(self, line: bytes) -> bytes:
        stage = _VERBS.get(line[:4].upper(), "")
        if stage == self._stage and self._fault in {"refuse", "defer", "leave"} and not self._mending.is_done:
            return self._at(stage, b"")  # and nothing has changed
        answer = super()._command(line)
        return self._at(stage, answer) if stage else answer

    def _keep(self, stuffed: bytes) -> bytes:
        if self._stage != "end" or self._mending.is_done:
            return super()._keep(stuffed)
        self.is_answering = False
        if self._fault not in {"refuse", "defer"}:
            super()._keep(stuffed)
        return self._at("end", b"250 2.0.0 taken\r\n")

    def _at(self, stage: str, good: bytes) -> bytes:
        if stage != self._stage or self._mending.is_done:
            return good
        match self._fault:
            case "refuse":
                return b"554 5.7.1 not you\r\n" if stage in {"greeting", "hello"} else b"550 5.7.1 not this\r\n"
            case "defer":
                return b"451 4.3.2 later\r\n"
            case "leave":
                asyncio.get_running_loop().call_soon(self._transport.close)
                return b"421 4.3.2 going down\r\n"
            case "reset":
                self._reset()
            case "close":
                self._transport.close()
            case "drip":
                self._drip(good)
            case "garbage":
                return b"\x00\xff\xfe nonsense \x80\r\n"
            case "early":
                return good + b"250 2.0.0 ok\r\n250 2.0.0 ok\r\n"
            case "lie":
                return good[:3] + b"-one thing\r\n" + b"5" + good[1:3] + b" and another\r\n"
            case "huge":
                return (good[:3] + b"-" + b"x" * 500 + b"\r\n") * 400
        return b""  # hang: nothing is said

    def _reset(self) -> None:
        sock = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.close()

    def _drip(self, octets: bytes) -> None:
        if octets and not self._transport.is_closing():
            self._transport.write(octets[:1])
            asyncio.get_running_loop().call_later(1.0, self._drip, octets[1:])


async def _serve(log: Path, specifications: Sequence[str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    mending = _Mending()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: setattr(mending, "is_done", True))
    put_off: set[str] = set()
    for specification in specifications:
        port, stage, fault = specification.split(":")

        def make(stage: str = stage, fault: str = fault) -> _BadSession:
            return _BadSession(descriptor, put_off, stage, fault, mending)

        await loop.create_server(make, ADDRESS, int(port))
    await asyncio.Event().wait()


class BadNextHops:
    """The running process; `ports` maps (stage, fault) to where it is."""

    def __init__(self, process: "subprocess.Popen[bytes]", ports: dict[tuple[str, str], int]) -> None:
        self._process = process
        self.ports = ports

    def mend(self) -> None:
        """From now on they all behave, in connections to come and in those that are there."""
        self._process.send_signal(signal.SIGUSR1)


@contextlib.contextmanager
def bad_next_hops(log: Path, wanted: Sequence[tuple[str, str]]) -> Iterator[BadNextHops]:
    """All of them, for as long as the block."""
    ports: dict[tuple[str, str], int] = {}
    while len(ports) < len(wanted):
        port = free_port(ADDRESS)
        if port not in ports.values():
            ports[wanted[len(ports)]] = port
    well = free_port(ADDRESS)
    specifications = [f"{port}:{stage}:{fault}" for (stage, fault), port in ports.items()]
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(log), *specifications, f"{well}:none:none"],
        env={**os.environ, "PYTHONPATH": python_path()},
        start_new_session=True,
    )
    try:
        wait_until(lambda: greets(ADDRESS, well), "the bad next hops to listen")
        yield BadNextHops(process, ports)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1]), sys.argv[2:]))
