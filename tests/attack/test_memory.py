"""Fifty clients with 25 MB each at the same time: taken, delivered to a next hop, and no process grows beyond 150 MB."""

import hashlib
import socketserver
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fault_sabotage import install
from peer_programs import wait_until
from posthouse_server import fork_server_of, memory_of, posthouse, route_to, workers_of
from siege import TO_ANYWHERE, Wire

CLIENTS = 50
OCTETS = 25_000_000
MOST_BYTES = 150_000_000

BLOCK = b"0123456789abcdefghijklmnopqrstuvwxyz.0123456789abcdefghijklmnopqrstuvwxyz\r\n" * 1000


def content() -> Iterator[bytes]:
    """Dots at line starts, so that transparency is at work."""
    yield b"Subject: large\r\n\r\n"
    for number in range(OCTETS // len(BLOCK)):
        yield b"..line %d begins with a dot\r\n" % number
        yield BLOCK


class Sink(socketserver.ThreadingTCPServer):
    """A next hop that reads mail and keeps the digests of contents as they crossed the wire."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _SinkHandler)
        self.digests: list[str] = []


class _SinkHandler(socketserver.StreamRequestHandler):
    rbufsize = 1 << 20

    def handle(self) -> None:
        self.wfile.write(b"220 sink ESMTP\r\n")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"EHLO":
                self.wfile.write(b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n")
            elif verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self._content()
                self.wfile.write(b"250 2.0.0 ok\r\n")
            elif verb == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            else:
                self.wfile.write(b"250 2.0.0 ok\r\n")

    def _content(self) -> None:
        digest, is_trace = hashlib.sha256(), True
        while (line := self.rfile.readline()) not in (b".\r\n", b""):
            is_trace = is_trace and not line.startswith(b"Subject:")
            if not is_trace:
                digest.update(line)
        server = self.server
        assert isinstance(server, Sink)
        server.digests.append(digest.hexdigest())


def processes(pid: int) -> list[int]:
    return [pid, fork_server_of(pid), *workers_of(pid)]


def send(port: int) -> str:
    wire = Wire(port)
    wire.sock.settimeout(300)
    wire.hello()
    wire.send(TO_ANYWHERE + b"DATA\r\n")
    assert [wire.reply()[:3] for _ in range(3)] == ["250", "250", "354"]
    for piece in content():
        wire.send(piece)
    answer = wire.say(b".\r\n")
    wire.close()
    return answer[:3]


def most_memory(count: int) -> int:
    """Octets that a process of the server had at most, while so many clients sent theirs and all was delivered."""
    with Sink() as sink:
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        port = sink.server_address[1]
        with posthouse(route_to(f"smtp://127.0.0.1:{port}"), head='log = { level = "info" }') as server:
            pids = processes(int(server.output().rpartition("pid ")[2].split(")")[0]))
            peaks = dict.fromkeys(pids, 0)
            is_over = threading.Event()

            def watch() -> None:
                while not is_over.wait(0.1):
                    for pid in pids:
                        peaks[pid] = max(peaks[pid], memory_of(pid))

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                began = time.monotonic()
                with ThreadPoolExecutor(count) as clients:
                    answers = list(clients.map(send, [server.port] * count))
                taken = time.monotonic() - began
                assert answers == ["250"] * count
                wait_until(lambda: len(sink.digests) == count, "all to be delivered", 200)
                print(f"taken in {taken:.0f} s, delivered in {time.monotonic() - began:.0f} s, peaks {peaks}")
            finally:
                is_over.set()
                watcher.join()
            digest = hashlib.sha256()
            for piece in content():
                digest.update(piece)
            assert set(sink.digests) == {digest.hexdigest()}
        sink.shutdown()
        return max(peaks.values())


@pytest.mark.slow
def test_fifty_large_messages_at_once_leave_each_process_below_150_mb() -> None:
    assert most_memory(CLIENTS) < MOST_BYTES


@pytest.mark.slow
def test_control_a_server_that_holds_contents_in_memory_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", install(tmp_path, "hold-all"))
    assert most_memory(8) > MOST_BYTES
