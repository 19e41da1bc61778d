"""Clients that vanish at every point of a session, each in three ways: no fault, nothing left, nothing queued that was not whole."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from posthouse.smtp.server import ServerSettings
from siege import BODY, LETTER, TO_ANYWHERE, Siege, Wire, besieged, slow_spool_in, slowly_right

SETTINGS = ServerSettings(
    "relay.test", auth_mechanisms=("PLAIN", "LOGIN"), auth_in_clear_allowed=True, errors_slow=2, errors_close=4
)
LARGE = b"Subject: large\r\n\r\n" + b"0123456789abcde\r\n" * 60_000
HELLO = b"EHLO c.test\r\n"
LOGIN = b"AUTH PLAIN AGFubmEAc2VjcmV0\r\n"

STAGES: dict[str, bytes] = {
    "at-once": b"",
    "within-a-line": b"EHLO c.te",
    "after-ehlo": HELLO,
    "after-mail": HELLO + b"MAIL FROM:<a@b.test>\r\n",
    "after-rcpt": HELLO + TO_ANYWHERE,
    "after-data": HELLO + LETTER,
    "in-content": HELLO + LETTER + BODY,
    "in-large-content": HELLO + LETTER + LARGE,
    "before-the-last-octet": HELLO + LETTER + BODY + b".\r",
    "while-a-small-message-is-stored": HELLO + LETTER + BODY + b".\r\n",
    "while-a-large-message-is-stored": HELLO + LETTER + LARGE + b".\r\n",
    "with-the-next-message-behind": HELLO + (LETTER + LARGE + b".\r\n") * 2 + LETTER + LARGE,
    "within-a-chunk": HELLO + TO_ANYWHERE + b"BDAT 9000000\r\n" + LARGE,
    "between-chunks": HELLO + TO_ANYWHERE + b"BDAT %d\r\n" % len(LARGE) + LARGE,
    "reset-after-a-large-chunk": HELLO + TO_ANYWHERE + b"BDAT %d\r\n" % len(LARGE) + LARGE + b"RSET\r\n",
    "in-a-refused-chunk": HELLO + b"BDAT 100000\r\nabc",
    "within-auth": HELLO + b"AUTH LOGIN\r\n",
    "while-the-password-is-checked": HELLO + LOGIN,
    "with-commands-behind-the-password": HELLO + LOGIN + LETTER + BODY + b".\r\n",
    "while-answers-are-slowed": HELLO + b"BOGUS\r\n" * 3,
    "after-a-bare-line-feed": HELLO + LETTER + b"a\nb",
    "after-quit": HELLO + b"QUIT\r\n",
    "after-a-flood": b"EHLO x\r\n" * 5000,
}


def close(wire: Wire) -> None:
    wire.close()


def reset(wire: Wire) -> None:
    wire.reset()


def half_close(wire: Wire) -> None:
    wire.half_close()


def vanish(siege: Siege, leave: Callable[[Wire], None], *, wait: float) -> None:
    wires = {name: siege.wire() for name in STAGES}
    for name, octets in STAGES.items():
        wires[name].sock.settimeout(0.5)
        try:
            wires[name].send(octets)
        except OSError:
            assert name == "after-a-flood"  # we do not read what we caused
    time.sleep(wait)
    for wire in wires.values():
        try:
            leave(wire)
        except OSError:
            continue  # cut already
    if leave is half_close:
        time.sleep(1.0)
        siege.end()


WAYS = [
    (leave, wait, under_tls)
    for leave in (close, reset, half_close)
    for wait in (0.0, 0.05)
    for under_tls in (False, True)
]
QUICK = {(reset, 0.05, False), (half_close, 0.05, True)}


@pytest.mark.parametrize(
    ("leave", "wait", "under_tls"),
    [pytest.param(*way, marks=[] if way in QUICK else [pytest.mark.slow]) for way in WAYS],
)
def test_whoever_vanishes_leaves_nothing_behind(
    tmp_path: Path, leave: Callable[[Wire], None], wait: float, under_tls: bool
) -> None:
    with besieged(
        under_tls=under_tls, settings=SETTINGS, verify=slowly_right, open_spool=slow_spool_in(tmp_path / "spool")
    ) as siege:
        spool = siege.served.spool
        vanish(siege, leave, wait=wait)
        siege.until(lambda: not siege.served.server.connections, "the connections to be gone")
        siege.until(lambda: spool._batches.own.octets_in_flight == 0, "the room of unfinished contents to be free")
        kept = siege.ask(lambda: {f"m{envelope.queue_id}" for envelope, _ in siege.served.kept.messages})
        siege.until(
            lambda: {path.name for path in tmp_path.rglob("content/m*")} <= kept, "unfinished contents to be gone"
        )
        for _, message in siege.served.kept.messages:
            assert message.content.size_bytes in {len(BODY), len(LARGE)}
        survivor = siege.wire()
        survivor.hello()
        survivor.send(LETTER + BODY + b".\r\n")
        assert [survivor.reply()[:3] for _ in range(4)] == ["250", "250", "354", "250"]
        siege.end()
        siege.until(lambda: not siege.served.server.connections, "the connections to be gone")
        siege.ask(spool.close)
