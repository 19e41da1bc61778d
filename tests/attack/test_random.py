"""Random clients: scraps of dialogue in any order, cut anywhere, left at any time. No fault, nothing left, nobody hurt."""

import contextlib
import random
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posthouse.net.server import Timeouts
from posthouse.smtp.server import ServerSettings
from siege import (
    BODY,
    LETTER,
    TO_ANYWHERE,
    Siege,
    Wire,
    besieged,
    client_context,
    server_context,
    slow_spool_in,
    slowly_right,
)

LARGE = b"Subject: large\r\n\r\n" + b"0123456789abcde\r\n" * 20_000
SCRAPS = [
    b"EHLO c.test\r\n",
    b"HELO c.test\r\n",
    b"MAIL FROM:<a@b.test>\r\n",
    b"MAIL FROM:<a@b.test> SIZE=99999999999\r\n",
    b"RCPT TO:<b@far.test>\r\n",
    b"RCPT TO:<b@here.test>\r\n",
    b"RCPT TO:<b%c@here.test>\r\n",
    TO_ANYWHERE,
    LETTER,
    LETTER + BODY + b".\r\n",
    LETTER + LARGE + b".\r\n",
    b"DATA\r\n",
    BODY,
    LARGE,
    b".\r\n",
    b"\r\n.\r",
    b"a\nb",
    b"BDAT 0\r\n",
    b"BDAT 5\r\nabcd\r",
    b"BDAT %d LAST\r\n" % len(BODY) + BODY,
    b"BDAT %d\r\n" % len(LARGE) + LARGE,
    b"BDAT 9999999999 LAST\r\n",
    b"BDAT x\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"NOOP\r\n" * 300,
    b"VRFY b\r\n",
    b"AUTH LOGIN\r\n",
    b"YW5uYQ==\r\n",
    b"*\r\n",
    b"AUTH PLAIN AGFubmEAc2VjcmV0\r\n",
    b"BOGUS\r\n",
    b"x" * 3000,
    b"\r\n",
    b"\0\r\n",
    b"GET / HTTP/1.1\r\n",
    b"QUIT\r\n",
]


def misbehave(siege: Siege, seed: int) -> None:
    numbers = random.Random(seed)
    wire = Wire(siege.port, numbers.choice(["127.0.0.1", "127.0.0.2"]))
    with contextlib.suppress(OSError):
        wire.sock.settimeout(0.05)
        if numbers.random() < 0.3:
            wire.send(b"EHLO c.test\r\nSTARTTLS\r\n" + numbers.choice([b"", b"NOOP\r\n"]))
            time.sleep(0.05)
            wire.sock.recv(65536)
            if numbers.random() < 0.8:
                wire.sock.settimeout(1)
                wire.sock = client_context().wrap_socket(wire.raw, server_hostname="localhost")
                wire.sock.settimeout(0.05)
        for _ in range(numbers.randint(0, 12)):
            scrap = numbers.choice(SCRAPS)
            cut = numbers.choice([len(scrap), len(scrap), numbers.randint(0, len(scrap))])
            wire.send(scrap[:cut])
            if numbers.random() < 0.3:
                time.sleep(numbers.random() / 20)
            wire.send(scrap[cut:])
            if numbers.random() < 0.5:
                with contextlib.suppress(TimeoutError, ssl.SSLError):
                    wire.sock.recv(65536)
        numbers.choice([wire.close, wire.reset, wire.half_close, lambda: time.sleep(0.1)])()
    with contextlib.suppress(OSError):
        wire.close()


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [False, True])
def test_random_clients_leave_no_fault_and_nothing_behind(tmp_path: Path, normalize: bool) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    context = server_context()
    settings = ServerSettings(
        "relay.test",
        size_limit=1_000_000,
        auth_mechanisms=("PLAIN", "LOGIN"),
        auth_in_clear_allowed=True,
        errors_slow=8,
        errors_close=10,
        normalize=normalize,
    )
    with besieged(
        settings=settings,
        timeouts=Timeouts(command=1.0, content=1.0),
        tls=lambda: context,
        verify=slowly_right,
        open_spool=slow_spool_in(tmp_path / "spool"),
        most_per_client=30,
    ) as siege:
        spool = siege.served.spool
        with ThreadPoolExecutor(40) as clients:
            list(clients.map(lambda number: misbehave(siege, seed + number), range(1500)))
        siege.until(lambda: not siege.served.server.connections, "the connections to be gone")
        siege.until(lambda: spool._batches.own.octets_in_flight == 0, "the room of unfinished contents to be free")
        kept = siege.ask(lambda: {f"m{envelope.queue_id}" for envelope, _ in siege.served.kept.messages})
        siege.until(lambda: {path.name for path in tmp_path.rglob("content/m*")} <= kept, "stray contents to be gone")
        assert kept, "some messages came whole"
        for _, message in siege.served.kept.messages:
            alone = b"".join(message.content.pieces).replace(b"\r\n", b"")
            assert b"\r" not in alone
            assert b"\n" not in alone
        siege.ask(spool.close)
