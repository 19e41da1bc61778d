"""A next hop that counts its connections exactly: alive is whoever has not closed yet, as the kernel has it when another comes."""

import contextlib
import io
import select
import socket
import threading
import time
from collections.abc import Iterator

ADDRESS = "127.0.0.1"

GRACE_SECONDS = 0.005
"""What was closed before another was opened may still be on its way here, from a processor that is busy."""


class CountingHop:
    """Takes mail, a few messages a connection, and remembers the subject of each and the most connections at once."""

    def __init__(self, messages: int = 3, pause: float = 0.01) -> None:
        """It hangs up after `messages` of a connection; each takes `pause` seconds."""
        self.most = 0
        self.connections = 0
        self.subjects: list[str] = []
        self.is_refusing = False
        self.messages = messages
        self.pause = pause
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening = socket.create_server((ADDRESS, 0), backlog=128)
        self.port: int = self._listening.getsockname()[1]

    def alive(self) -> int:
        """Connections that the other side has not closed."""
        poll = select.poll()
        with self._lock:
            for one in self._open:
                poll.register(one, select.POLLRDHUP)
            return len(self._open) - len(poll.poll(0))

    def accept(self) -> None:
        """Until the listening socket is shut down."""
        while True:
            try:
                one, _ = self._listening.accept()
            except OSError:
                return
            with self._lock:
                self._open.add(one)
            self.connections += 1
            alive = self.alive()
            if alive > self.most:
                time.sleep(GRACE_SECONDS)
                alive = min(alive, self.alive())
            self.most = max(self.most, alive)
            threading.Thread(target=self._serve, args=(one,), daemon=True).start()

    def close(self) -> None:
        """Takes no more."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        with self._lock:
            for one in self._open:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _serve(self, one: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                self._talk(one)
        finally:
            with self._lock:
                self._open.discard(one)
                one.close()

    def _talk(self, one: socket.socket) -> None:
        if self.is_refusing:
            one.sendall(b"421 not now\r\n")
            return
        one.settimeout(60)
        lines = one.makefile("rb")
        one.sendall(b"220 hop.test\r\n")
        served = 0
        while served < self.messages and (line := lines.readline()):
            verb = line[:4].upper()
            if verb == b"DATA":
                one.sendall(b"354 go on\r\n")
                self._take(lines)
                served += 1
            one.sendall(b"221 bye\r\n" if verb == b"QUIT" else b"250 fine\r\n")

    def _take(self, lines: io.BufferedReader) -> None:
        subject = ""
        for line in lines:
            if line == b".\r\n":
                break
            if line.startswith(b"Subject: "):
                subject = line[9:].decode().strip()
        time.sleep(self.pause)
        self.subjects.append(subject)


@contextlib.contextmanager
def counting_hop(messages: int = 3, pause: float = 0.01) -> Iterator[CountingHop]:
    """One at work for as long as the block."""
    hop = CountingHop(messages, pause)
    accepting = threading.Thread(target=hop.accept, daemon=True)
    accepting.start()
    try:
        yield hop
    finally:
        hop.close()
        accepting.join(5)
