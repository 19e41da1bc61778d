"""Clients that send much, read nothing, or hold what they got: bounded in memory and time, and the others notice nothing."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from posthouse.net.connection import Phase, Timeouts
from posthouse.relay.session import Verified
from posthouse.smtp.server import ServerSettings
from posthouse.spool.sqlite import SqliteSpool
from siege import BODY, LETTER, TO_ANYWHERE, Siege, Wire, besieged
from spooling import SMALL

SETTINGS = ServerSettings(
    "relay.test", auth_mechanisms=("PLAIN", "LOGIN"), auth_in_clear_allowed=True, errors_slow=1, errors_close=3
)


@pytest.fixture
def siege() -> Iterator[Siege]:
    with besieged(settings=SETTINGS, timeouts=Timeouts(command=1.0)) as siege:
        yield siege


WORK_BEFORE_ANOTHER = 0.3
"""Seconds of processor time that the server, in this process, may spend on floods before another client has its answers. A clock
on the wall would tell of whatever else keeps the machine busy."""


def pour(wire: Wire, octets: bytes) -> None:
    """Sends what goes out at once, and never reads."""
    wire.sock.setblocking(False)
    with contextlib.suppress(OSError):
        wire.sock.send(octets)


def served_on(siege: Siege) -> int:
    """Connections that the server still answers."""
    return sum(connection._phase is Phase.TALKING for connection in siege.served.server.connections)


def most_buffered(siege: Siege) -> tuple[int, int]:
    """Octets waiting to be written, and octets read and not used, of the worst connection."""
    connections = siege.served.server.connections
    return (
        max((c._transport.get_write_buffer_size() for c in connections), default=0),
        max((c.engine.buffered_bytes for c in connections), default=0),
    )


FLOODS = {
    "noop": b"NOOP\r\n",
    "rset": b"RSET\r\n",
    "mail-rset": b"MAIL FROM:<a@b.test>\r\nRSET\r\n",
    "ehlo": b"EHLO c.test\r\n",
    "helo-mail": b"HELO c.test\r\nMAIL FROM:<a@b.test>\r\n",
    "rcpt": b"RCPT TO:<b@far.test>\r\n",
    "refused-rcpt": b"RCPT TO:<b@@far.test>\r\n",
    "help": b"HELP\r\n",
    "tiny-chunks": b"BDAT 1\r\nx",
    "empty-chunks": b"BDAT 0\r\n",
    "refused-chunks": b"BDAT 0 LAST\r\n",
    "messages": LETTER + BODY + b".\r\n",
}


@pytest.mark.slow
def test_floods_whose_answers_nobody_reads_are_bounded_end_and_delay_nobody(siege: Siege) -> None:
    wires = {name: siege.wire() for name in FLOODS}
    floods = {name: octets * (100_000 // len(octets)) for name, octets in FLOODS.items()}
    for name, wire in wires.items():
        wire.hello()
        if name in {"rcpt", "tiny-chunks", "empty-chunks"}:
            wire.send(TO_ANYWHERE)
    other = siege.wire()
    other.hello()
    end = time.monotonic() + 90
    waits: list[float] = []
    while siege.ask(lambda: served_on(siege)) > 1:
        assert time.monotonic() < end, "the server went on for ever"
        for name, wire in wires.items():
            pour(wire, floods[name])
        asked_at = time.process_time()
        assert other.is_open()
        other.send(LETTER + BODY + b".\r\n")  # a message accepted: its NOOPs are free again
        assert [other.reply()[:3] for _ in range(4)] == ["250", "250", "354", "250"]
        waits.append(time.process_time() - asked_at)
        to_write, to_use = siege.ask(lambda: most_buffered(siege))
        assert to_write < 256 * 1024
        assert to_use < 1024 * 1024
        time.sleep(0.01)
    assert statistics.median(waits) < WORK_BEFORE_ANOTHER, waits


def test_a_hundred_thousand_commands_of_a_client_that_reads_do_not_delay_the_others() -> None:
    with besieged(settings=ServerSettings("relay.test", idle_commands=10**6)) as siege:
        wire, other = siege.wire(), siege.wire("127.0.0.3")
        wire.hello()
        other.hello()
        wire.send(b"NOOP\r\n" * 50_000)
        waits: list[float] = []
        answered = 0
        while answered < 50_000:
            answered += wire.sock.recv(1 << 20).count(b"\n")
            asked_at = time.process_time()
            assert other.is_open()
            waits.append(time.process_time() - asked_at)
        assert statistics.median(waits) < WORK_BEFORE_ANOTHER, waits


def test_a_client_that_never_reads_its_last_reply_is_gone_soon(siege: Siege) -> None:
    wire = siege.wire()
    wire.hello()
    wire.send(b"QUIT\r\n")
    stuck = siege.wire()
    stuck.ready_for_data()
    stuck.send(b"a\nb")
    siege.until(lambda: not siege.served.server.connections, "both to be gone")


def test_a_client_that_opens_auth_and_hangs_is_cut(siege: Siege) -> None:
    wire = siege.wire()
    wire.hello()
    assert wire.say("AUTH LOGIN").startswith("334")
    assert [reply[:9] for reply in wire.rest()] == ["421 4.4.2"]


def test_a_fault_while_a_password_is_checked_ends_the_session_with_421_and_is_told() -> None:
    async def broken(_login: str, _password: str, _client: str) -> Verified:
        await asyncio.sleep(0)
        raise RuntimeError("a bug")

    with besieged(settings=SETTINGS, verify=broken) as siege:
        wire = siege.wire()
        wire.hello()
        assert wire.say("AUTH PLAIN AGFubmEAc2VjcmV0").startswith("421")
        assert wire.rest() == []


@pytest.mark.parametrize("under_tls", [False, True], ids=["clear", "tls"])
def test_more_connections_than_allowed_are_told_so_and_a_flood_beyond_is_shed(
    monkeypatch: pytest.MonkeyPatch, under_tls: bool
) -> None:
    monkeypatch.setattr("posthouse.net.server.SHED", 5)
    with besieged(under_tls=under_tls, settings=SETTINGS, most_per_client=1000) as siege:
        siege.ask(lambda: siege.served.server.limit(10, 1000))
        inside = [siege.wire() for _ in range(10)]
        for wire in inside:
            wire.hello()
        outside = [Wire(siege.port) for _ in range(30)]
        for wire in outside:
            wire.sock.settimeout(5)
        greetings = [greeting_of(wire) for wire in outside]
        assert set(greetings) <= ({""} if under_tls else {"", "421 4.3.2"})
        assert all(wire.is_open() for wire in inside)
        for wire in inside + outside:
            wire.close()
        siege.until(lambda: not siege.served.server.connections, "all to be gone")
        siege.wire().hello()


def greeting_of(wire: Wire) -> str:
    try:
        return wire.sock.recv(9).decode()
    except OSError:
        return ""


def test_a_handshake_that_hangs_counts_as_a_connection_of_its_client() -> None:
    with besieged(under_tls=True, settings=SETTINGS, most_per_client=3) as siege:
        hanging = [Wire(siege.port, "127.0.0.9") for _ in range(3)]
        siege.until(lambda: len(siege.served.server.connections) == 3, "three connections")
        one_more = Wire(siege.port, "127.0.0.9")
        assert greeting_of(one_more) == ""
        siege.wire("127.0.0.8").hello()
        for wire in [*hanging, one_more]:
            wire.close()


def test_a_content_that_ends_while_the_disk_is_behind_is_answered_and_the_session_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posthouse.spool.content.CONGESTED", 1024)
    large = b"Subject: large\r\n\r\n" + b"0123456789abcde\r\n" * 60_000

    def open_spool() -> SqliteSpool:
        return SqliteSpool(tmp_path / "spool", 1, loop=asyncio.get_running_loop(), settings=SMALL)

    with besieged(settings=SETTINGS, open_spool=open_spool) as siege:
        wire = siege.wire()
        wire.hello()
        for _ in range(3):
            wire.send(LETTER + large + b".\r\nNOOP\r\n")
            assert [wire.reply()[:3] for _ in range(5)] == ["250", "250", "354", "250", "250"]
        for ending in (b"RSET\r\n", b"BDAT 0 LAST\r\n"):
            wire.send(TO_ANYWHERE + b"BDAT %d\r\n" % len(large) + large + ending + b"NOOP\r\n")
            assert [wire.reply()[:3] for _ in range(5)] == ["250"] * 5
        siege.until(lambda: siege.served.spool._batches.own.octets_in_flight == 0, "the room to be free again")
        siege.end()
        siege.until(lambda: not siege.served.server.connections, "the connection to be gone")
        siege.ask(siege.served.spool.close)


def test_many_unfinished_contents_go_to_disk_before_they_fill_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posthouse.relay.session.MOST_ARRIVING", 100_000)
    body = b"Subject: x\r\n\r\n" + b"0123456789abcde\r\n" * 3000

    def open_spool() -> SqliteSpool:
        return SqliteSpool(tmp_path / "spool", 1, loop=asyncio.get_running_loop(), settings=SMALL)

    with besieged(settings=SETTINGS, open_spool=open_spool) as siege:
        intake = siege.served.desk.intake
        wires = siege.wires(20)
        for wire in wires:
            wire.ready_for_data()
            wire.send(body)
        siege.until(lambda: len(list(tmp_path.rglob("content/m*"))) >= 15, "most contents to be on disk")
        assert siege.ask(lambda: intake.arriving) <= 100_000
        for wire in wires[:15]:
            assert wire.say(b".\r\n").startswith("250")
        siege.end()
        siege.until(lambda: not siege.served.server.connections, "the connections to be gone")
        assert siege.ask(lambda: intake.arriving) == 0
        assert {message.content.size_bytes for _, message in siege.served.kept.messages} == {len(body)}
        siege.ask(siege.served.spool.close)
