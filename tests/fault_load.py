"""Clients of the fault programme: threads that hand in one message after the other, whatever the server does meanwhile.

Sizes cover all three places a content can be in (a row, a shared file, a file of its own), recipients cover both kinds of
delivery and a failure: one at the next hop, one in a Maildir, two at once, one that the next hop refuses (a notice to the
sender is owed) or puts off.
"""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence

from fault_oracle import ID_FIELD, Ledger

ADDRESS = "127.0.0.1"
RELAYED, LOCAL, REFUSED, LATER = "b@dst.test", "box@local.test", "refuse@dst.test", "later@dst.test"
MIXED: tuple[tuple[str, ...], ...] = ((RELAYED,),) * 6 + (
    (LOCAL,),
    (RELAYED, LOCAL),
    (REFUSED, RELAYED),
    (REFUSED,),
    (LATER,),
)
SIZES = (300,) * 12 + (4_000,) * 8 + (30_000,) * 4 + (120_000,) * 2 + (1_500_000,)
_FILLER = b"".join(
    b"%s%07d the quick brown fox jumps over the lazy dog\r\n" % (b"." * (n % 3 == 0), n) for n in range(40_000)
)


def content(name: str, size: int, seed: int) -> bytes:
    """A message of about so many octets that holds its id, unlike any other, with dots where dots hurt."""
    head = ID_FIELD + name.encode() + b"\r\nFrom: <a@src.test>\r\nSubject: x\r\n\r\n"
    start = _FILLER.find(b"\r\n", seed % (len(_FILLER) - 2_000_000 if size > 1_000_000 else len(_FILLER) // 2)) + 2
    end = _FILLER.find(b"\r\n", start + size) + 2
    return head + _FILLER[start:end]


def stuffed(octets: bytes) -> bytes:
    """As DATA sends it, with the final dot."""
    return octets.replace(b"\r\n.", b"\r\n..") + b".\r\n"


class Client:
    """One blocking connection, as plain as can be."""

    def __init__(self, port: int, timeout: float = 20.0, source: str = ADDRESS) -> None:
        self._socket = socket.create_connection((ADDRESS, port), timeout=timeout, source_address=(source, 0))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self.is_in_data = False
        """The last message got as far as DATA."""
        self.replies(1)

    def replies(self, count: int) -> list[str]:
        """That many replies (their last lines). ConnectionError when the server is gone."""
        found: list[str] = []
        while len(found) < count:
            line, end, rest = self._buffer.partition(b"\r\n")
            if end:
                self._buffer = rest
                if line[3:4] != b"-":
                    found.append(line.decode())
                continue
            more = self._socket.recv(65536)
            if not more:
                raise ConnectionResetError("the server closed")
            self._buffer += more
        return found

    def say(self, line: str) -> str:
        """One command, its reply."""
        self._socket.sendall(line.encode() + b"\r\n")
        return self.replies(1)[0]

    def hand_in(self, octets: bytes, recipients: Sequence[str], reverse_path: str = "a@src.test") -> str:
        """One message, its size declared; the reply that ended it."""
        self.is_in_data = False
        envelope = [
            f"MAIL FROM:<{reverse_path}> SIZE={len(octets)}",
            *(f"RCPT TO:<{one}>" for one in recipients),
            "DATA",
        ]
        self._socket.sendall("".join(line + "\r\n" for line in envelope).encode())
        answers = self.replies(len(envelope))
        if not answers[-1].startswith("354"):
            if answers[0].startswith("250"):
                self.say("RSET")
            return next(answer for answer in answers if answer[0] in "45")
        self.is_in_data = True
        self._socket.sendall(stuffed(octets))
        return self.replies(1)[0]

    def close(self) -> None:
        self._socket.close()


class _Sender(threading.Thread):
    def __init__(self, load: "Load", number: int) -> None:
        super().__init__(daemon=True)
        self._load = load
        self._number = number
        self._random = random.Random(load.seed * 1000 + number)
        self._count = 0

    def run(self) -> None:
        while not self._load.ended.is_set():
            if not self._load.running.wait(0.2):
                continue
            with contextlib.suppress(OSError), contextlib.closing(Client(self._load.port)) as client:
                client.say("EHLO client.test")
                while self._load.running.is_set():
                    self._one(client)
            time.sleep(0.005)

    def _one(self, client: Client) -> None:
        load = self._load
        self._count += 1
        name = f"{load.seed}-{self._number}-{self._count}"
        size = self._random.choice(load.sizes)
        recipients = self._random.choice(load.mix)
        octets = content(name, size, self._random.randrange(1 << 30))
        load.ledger.sends(name, octets, recipients)
        reply = ""
        try:
            reply = client.hand_in(octets, recipients)
        finally:
            load.ledger.answered(name, reply)
            load.late_refusals += client.is_in_data and reply.startswith("452")
        if load.pause:
            time.sleep(load.pause)
        if reply.startswith("4"):
            time.sleep(0.01)


class Load:
    """Some senders against one port; `running` lets them send, `ended` sends them home."""

    def __init__(
        self,
        ledger: Ledger,
        port: int,
        seed: int,
        mix: Sequence[tuple[str, ...]] = MIXED,
        sizes: Sequence[int] = SIZES,
        pause: float = 0.0,
    ) -> None:
        self.ledger = ledger
        self.port = port
        self.seed = seed
        self.mix = mix
        self.sizes = sizes
        self.pause = pause
        self.running = threading.Event()
        self.ended = threading.Event()
        self.late_refusals = 0
        """Messages for which there was no room after all, though their size had been declared."""


@contextlib.contextmanager
def sending(load: Load, clients: int = 4) -> Iterator[Load]:
    """The senders, running for as long as the block."""
    senders = [_Sender(load, number) for number in range(clients)]
    load.running.set()
    for sender in senders:
        sender.start()
    try:
        yield load
    finally:
        load.running.clear()
        load.ended.set()
        for sender in senders:
            sender.join(30)
