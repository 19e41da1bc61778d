"""TLS used as a weapon: what is said in the clear around it is never taken for what was said under it."""

import contextlib
import ssl
from collections.abc import Iterator

import pytest

from posthouse.smtp.server import ServerSettings
from siege import BODY, LETTER, TO_ANYWHERE, Siege, Wire, besieged, client_context, server_context

SETTINGS = ServerSettings("relay.test", auth_mechanisms=("PLAIN",))


class HandMadeTls:
    """The client's side of TLS with its records in our hands."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = client_context().wrap_bio(self._in, self._out, server_hostname="localhost")
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                wire.send(self._out.read())
                self._in.write(wire.raw.recv(65536))
        self.wire.send(self._out.read())

    def seal(self, octets: bytes) -> bytes:
        self._tls.write(octets)
        return self._out.read()

    def goodbye(self) -> bytes:
        """close_notify."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        return self._out.read()

    def read_until(self, wanted: bytes) -> bytes:
        """What the server says, until `wanted` is in it or the connection ends."""
        said = b""
        while wanted not in said:
            with contextlib.suppress(ssl.SSLWantReadError):
                said += self._tls.read(65536)
                continue
            octets = self.wire.raw.recv(65536)
            if not octets:
                return said
            self._in.write(octets)
        return said


@contextlib.contextmanager
def implicit() -> Iterator[tuple[Siege, HandMadeTls]]:
    with besieged(under_tls=True, settings=SETTINGS) as siege:
        wire = Wire(siege.port)
        yield siege, HandMadeTls(wire)
        wire.close()


CUT_SHORT = {
    "in-content": (LETTER, b"354", BODY),
    "before-the-final-dot": (LETTER, b"354", BODY[:-2]),
    "in-a-chunk": (TO_ANYWHERE, b"2.1.5", b"BDAT %d LAST\r\n" % len(BODY) + BODY[:7]),
    "between-chunks": (TO_ANYWHERE, b"2.1.5", b"BDAT %d\r\n" % len(BODY) + BODY),
}


@pytest.mark.parametrize("place", CUT_SHORT)
@pytest.mark.parametrize("in_one_packet", [True, False])
def test_plaintext_behind_close_notify_is_no_content(place: str, in_one_packet: bool) -> None:
    """CVE-2026-45185: octets after the peer's close_notify were taken as the message's."""
    start, answer, beginning = CUT_SHORT[place]
    rest = BODY + b"\r\n.\r\nMAIL FROM:<evil@x.test>\r\nBDAT 0 LAST\r\nQUIT\r\n"
    with implicit() as (siege, tls):
        tls.wire.send(tls.seal(b"EHLO c.test\r\n" + start))
        tls.read_until(answer)
        sealed = tls.seal(beginning) + tls.goodbye()
        if in_one_packet:
            tls.wire.send(sealed + rest)
        else:
            tls.wire.send(sealed)
            with contextlib.suppress(OSError):
                tls.wire.send(rest)
        siege.until(lambda: not siege.served.server.connections, "the connection to be gone")
        assert siege.contents == []


def test_what_came_whole_before_close_notify_is_answered() -> None:
    with implicit() as (siege, tls):
        tls.wire.send(tls.seal(b"EHLO c.test\r\n" + LETTER))
        tls.read_until(b"354")
        tls.wire.send(tls.seal(BODY + b".\r\n") + tls.goodbye())
        siege.until(lambda: siege.contents == [BODY], "the message")


def test_tampered_records_end_the_connection_and_nothing_is_taken() -> None:
    with implicit() as (siege, tls):
        tls.wire.send(tls.seal(b"EHLO c.test\r\n" + LETTER))
        tls.read_until(b"354")
        record = bytearray(tls.seal(BODY + b".\r\n"))
        record[-1] ^= 1
        tls.wire.send(bytes(record))
        siege.until(lambda: not siege.served.server.connections, "the connection to be gone")
        assert siege.contents == []


def test_octets_behind_starttls_are_thrown_away() -> None:
    context = server_context()
    with besieged(settings=SETTINGS, tls=lambda: context) as siege:
        wire = siege.wire()
        assert "STARTTLS" in wire.hello()
        wire.send(b"STARTTLS\r\nEHLO evil.test\r\nMAIL FROM:<evil@x.test>\r\nRCPT TO:<b@far.test>\r\n")
        assert wire.reply().startswith("220")
        tls = HandMadeTls(wire)
        tls.wire.send(tls.seal(b"RCPT TO:<b@far.test>\r\n"))
        assert b"503 5.5.1" in tls.read_until(b"\r\n")
        tls.wire.send(tls.seal(b"EHLO c.test\r\n"))
        assert b"STARTTLS" not in tls.read_until(b"250 ")
        wire.close()


def test_commands_in_the_clear_where_the_handshake_belongs_end_the_connection() -> None:
    context = server_context()
    with besieged(settings=SETTINGS, tls=lambda: context) as siege:
        wire = siege.wire()
        wire.hello()
        assert wire.say("STARTTLS").startswith("220")
        wire.send(b"EHLO evil.test\r\n" + LETTER + BODY + b".\r\n")
        siege.until(lambda: not siege.served.server.connections, "the connection to be gone")
        assert siege.contents == []


def test_starttls_within_a_transaction_is_refused_and_forgets_nothing() -> None:
    context = server_context()
    with besieged(settings=SETTINGS, tls=lambda: context) as siege:
        wire = siege.wire()
        wire.hello()
        wire.send(TO_ANYWHERE + b"STARTTLS\r\nDATA\r\n")
        assert [wire.reply()[:3] for _ in range(4)] == ["250", "250", "503", "354"]
        assert wire.say(BODY + b".\r\n").startswith("250")
        assert siege.contents == [BODY]


def test_a_certificate_that_went_with_a_reload_ends_the_handshake_only() -> None:
    found = [server_context()]
    with besieged(settings=SETTINGS, tls=lambda: found[0] if found else None) as siege:
        wire = siege.wire()
        wire.hello()
        found.clear()
        wire.send(b"STARTTLS\r\n")
        siege.until(lambda: not siege.served.server.connections, "the connection to be gone")
        other = siege.wire()
        other.hello()
        assert other.is_open()
