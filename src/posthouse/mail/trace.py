"""The fields that we put in front of a message: Received, Return-Path, Delivered-To (RFC 5321 4.4).

Received says by which way the mail came to us, for people who look for a fault or a culprit. A login or a listener is
not named: the field travels to strangers, and `posthouse why` tells the owner. All that a client chose (its hello name,
its addresses) is written with the octets that could end a line or a comment replaced, so nothing can be injected here.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from posthouse.mail.envelope import Origin
from posthouse.smtp.address import AddressError, Path
from posthouse.smtp.event import Verb

SOFTWARE: Final = b"Posthouse"
_HELLO_LIMIT: Final = 255  # RFC 5321 4.5.3.1.2, a domain
_LINE_LIMIT: Final = 78  # RFC 5322 2.1.1, where folding allows
_NOT_IN_NAME: Final = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_NOT_IN_COMMENT: Final = re.compile(r"[^A-Za-z0-9._:/+ -]")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def protocol_keyword(verb: Verb, *, tls: bool, login: bool, smtputf8: bool = False) -> str:
    """The with-keyword of RFC 3848 (RFC 6531 4.3 for the UTF8 forms): "ESMTPSA", "LMTP", "UTF8SMTPS".

    HELO has one keyword, whatever lies under it: no other is registered.
    """
    if verb is Verb.HELO:
        return "SMTP"
    word = "LMTP" if verb is Verb.LHLO else "SMTP"
    prefix = "UTF8" if smtputf8 else ("" if verb is Verb.LHLO else "E")
    return f"{prefix}{word}{'S' if tls else ''}{'A' if login else ''}"


@lru_cache(maxsize=8)
def _date_of_second(second: int) -> bytes:
    at = datetime.fromtimestamp(second, UTC)
    day, month = _DAYS[at.weekday()], _MONTHS[at.month - 1]  # strftime would speak the locale's language
    return f"{day}, {at.day} {month} {at.year} {at:%H:%M:%S} +0000".encode()


def date_time(now: int) -> bytes:
    """The date-time of RFC 5322 3.3 for `now` (milliseconds since 1970), in universal time."""
    return _date_of_second(now // 1000)


def mailbox_octets(path: Path) -> bytes:
    """A path without its angle brackets, fit for a header field whatever octets it holds: control characters become `?`."""
    try:
        return path.encode()
    except AddressError:
        return Path(_CONTROL.sub(b"?", path.local_part), path.domain).encode()


class TraceWriter:
    """Writes the Received fields of one session; what does not change from message to message is made once."""

    __slots__ = ("_head", "_takes_utf8")

    def __init__(self, hostname: str, origin: Origin) -> None:
        """`origin` as the messages will carry it; a new greeting, TLS or a login makes another writer necessary."""
        self._takes_utf8 = origin.protocol.startswith("UTF8")
        self._head = _received_head(hostname, origin)

    def received(self, queue_id: str, now: int, forward_path: Path | None = None) -> bytes:
        """One Received field with its CRLF. `now` is the arrival in milliseconds since 1970.

        `forward_path` is for a message with a single recipient: naming one of several would betray the others' Bcc.
        """
        date = _date_of_second(now // 1000)
        if forward_path is not None:
            mailbox = mailbox_octets(forward_path)
            if self._takes_utf8 or mailbox.isascii():
                return b"%b %b\r\n\tfor <%b>;\r\n\t%b\r\n" % (self._head, queue_id.encode(), mailbox, date)
        return b"%b %b;\r\n\t%b\r\n" % (self._head, queue_id.encode(), date)


def return_path_field(reverse_path: Path) -> bytes:
    """The Return-Path field, written at final delivery and nowhere else (RFC 5321 4.4)."""
    return b"Return-Path: <%b>\r\n" % mailbox_octets(reverse_path)


def delivered_to_field(forward_path: Path) -> bytes:
    """The Delivered-To field, written at final delivery; `header.was_delivered_to` finds a loop by it."""
    return b"Delivered-To: %b\r\n" % mailbox_octets(forward_path)


def _received_head(hostname: str, origin: Origin) -> bytes:
    """All up to the queue id: who, by whom, with what."""
    by = hostname.encode()
    if not origin.client:
        if origin.local_uid >= 0:
            return b"Received: by %b (%b, from userid %d)\r\n\tid" % (by, SOFTWARE, origin.local_uid)
        return b"Received: by %b (%b)\r\n\tid" % (by, SOFTWARE)
    name = _NOT_IN_NAME.sub("?", origin.hello_name[:_HELLO_LIMIT]) or "unknown"
    client = _NOT_IN_NAME.sub("?", origin.client)
    literal = f"[IPv6:{client}]" if ":" in client else f"[{client}]"
    start = f"Received: from {name}"
    fold = " " if len(start) + len(literal) + 3 <= _LINE_LIMIT else "\r\n\t"
    tls = f"\r\n\t({_NOT_IN_COMMENT.sub('?', origin.tls)})" if origin.tls else ""
    return f"{start}{fold}({literal}){tls}\r\n\tby {hostname} with {origin.protocol} id".encode()
