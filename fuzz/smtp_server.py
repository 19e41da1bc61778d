"""Fuzzes the server engine and the grammar of addresses: `python fuzz/smtp_server.py -max_total_time=60`.

Needs atheris (`pip install --group fuzz`). The corpus beside it is also run by the tests, without atheris. New finds go into a
directory given on the command line; without one they go nowhere.

An input is: an octet that chooses the settings, an octet that says how the rest is cut, the client's octets.
"""

import re
import sys
from pathlib import Path as FilePath

from posthouse.smtp.address import AddressError, parse_forward_path, parse_reverse_path
from posthouse.smtp.event import (
    ContentBroken,
    ContentComplete,
    ContentPiece,
    ContentWanted,
    Event,
    MailFrom,
    RcptTo,
    TlsWanted,
)
from posthouse.smtp.reply import CONTENT_WELCOME, Reply, reply
from posthouse.smtp.server import CLOSED, NEED_DATA, PAUSED, Dialect, ServerConnection, ServerSettings

CORPUS = FilePath(__file__).parent / "corpus" / "smtp_server"
MOST_OCTETS = 4096

SMTP = ServerSettings(
    hostname="h",
    size_limit=200,
    header_limit=100,
    starttls=True,
    auth_mechanisms=("PLAIN", "LOGIN"),
    auth_in_clear_allowed=True,
    rcpt_max=3,
    small_chunks=5,
    idle_commands=5,
)
NORMALIZE = ServerSettings(hostname="h", normalize=True, size_limit=200, header_limit=100)
LMTP = ServerSettings(hostname="h", dialect=Dialect.LMTP, errors_close=50)
SETTINGS = (SMTP, NORMALIZE, LMTP)

_replies = re.compile(rb"(?:[2-5][0-5][0-9][ -][^\r\n\x00]*\r\n)*").fullmatch
_bare = re.compile(rb"\r(?!\n)|(?<!\r)\n").search


def answer(event: Event) -> Reply:
    """Refuses what begins with `n`, so that refusals are met as well."""
    match event:
        case ContentWanted():
            return CONTENT_WELCOME
        case MailFrom():
            path = event.reverse_path
        case RcptTo():
            path = event.forward_path
        case _:
            return reply(250, "2.0.0", "OK")
    return reply(550, "5.7.1", "No") if path.local_part.startswith(b"n") else reply(250, "2.0.0", "OK")


def talk(settings: ServerSettings, pieces: list[bytes]) -> tuple[bytes, list[Event]]:
    """What a session says and learns."""
    engine = ServerConnection(settings)
    engine.greet()
    sent, events = engine.data_to_send(), list[Event]()
    for piece in pieces:
        engine.receive_data(piece)
        while True:
            event = engine.next_event()
            if event is NEED_DATA or event is PAUSED or event is CLOSED:
                break
            events.append(event)
            if event.needs_reply:
                engine.reply(answer(event))
        sent += engine.data_to_send()
        assert engine.buffered_bytes <= 16384
    return sent, _joined(events)


def _joined(events: list[Event]) -> list[Event]:
    """Adjacent pieces as one, and none of content that broke: the rest may not depend on the cuts."""
    joined: list[Event] = []
    for event in events:
        last = joined[-1] if joined else None
        if isinstance(event, ContentPiece) and isinstance(last, ContentPiece):
            joined[-1] = ContentPiece(last.data + event.data)
        elif isinstance(event, ContentBroken) and isinstance(last, ContentPiece):
            joined[-1] = event
        else:
            joined.append(event)
    return joined


def check(data: bytes) -> None:
    """Raises when one of the engine's promises does not hold for this input."""
    if len(data) < 2:
        return
    settings = SETTINGS[data[0] % len(SETTINGS)]
    octets = data[2 : MOST_OCTETS + 2]
    check_address(octets)
    whole = talk(settings, [octets])
    step = data[1] % 7 + 1
    assert talk(settings, [octets[at : at + step] for at in range(0, len(octets), step)]) == whole
    sent, events = whole
    assert _replies(sent)
    content = b""
    for event in events:
        match event:
            case ContentPiece():
                content = event.data
            case ContentComplete():
                check_content(content, event)
                content = b""
            case MailFrom():
                assert parse_reverse_path(event.reverse_path.encode(), smtputf8=True) == event.reverse_path
            case RcptTo():
                assert parse_forward_path(event.forward_path.encode(), smtputf8=True) == event.forward_path
            case TlsWanted():
                assert event is events[-1]


def check_content(content: bytes, event: ContentComplete) -> None:
    """Content that was taken is lines that end with CRLF, and what is said of it is so."""
    assert event.size_bytes == len(content)
    assert event.is_8bit == (not content.isascii())
    assert bool(event.dots) == (b"\r\n." in b"\r\n" + content)
    assert not content or content.endswith(b"\r\n")
    assert not _bare(content)


def check_address(octets: bytes) -> None:
    """Any octets are an address that prints and reads back, or an AddressError."""
    for text in (octets, octets.partition(b"\r\n")[0]):
        try:
            path = parse_forward_path(text, smtputf8=True)
        except AddressError:
            continue
        assert parse_forward_path(path.encode(), smtputf8=True) == path
        assert len(path.encode()) <= 254


def main() -> None:
    """Runs until -max_total_time, or until something breaks."""
    import atheris  # noqa: PLC0415  the tests import this module without it

    atheris.instrument_all()
    seeds = ",".join(str(path) for path in sorted(CORPUS.iterdir()))
    atheris.Setup([*sys.argv, f"-seed_inputs={seeds}"], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
