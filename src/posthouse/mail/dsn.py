"""Delivery status notifications: which are owed, and their octets (RFC 3461, 3462/6522, 3464, 6533).

A notification is a message of our own, so it is composed whole; the message it is about is attached as the octets it is,
never parsed and written again. Three parts: sentences for people (`notice.py`), fields for programs, and the original's
header, or all of it where RET=FULL asks and it is small. A report about an internationalised message uses the types of
RFC 6533 and needs SMTPUTF8; every other report is ASCII but for what the original brings.

Everything in the report that a stranger chose (addresses, ORCPT, ENVID, a next hop's reply) passes `clean`, so it can
end no line. Lines of ours never begin with a dot, so the report's dot form is the original's.
"""

import enum
import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

import msgspec

from posthouse.mail.envelope import Envelope, Recipient
from posthouse.mail.header import field
from posthouse.mail.message import Content, Message
from posthouse.mail.notice import Kind, Notice, RecipientNotice, clean, escape, human_part
from posthouse.mail.outcome import Deferred, Delivered, Failed, Outcome, Relayed
from posthouse.mail.status import is_enhanced
from posthouse.mail.trace import date_time, mailbox_octets
from posthouse.smtp.address import NULL_PATH, Path
from posthouse.smtp.event import DotForm, Notify, Ret

__all__ = [
    "WHOLE_LIMIT",
    "Action",
    "Due",
    "Kind",
    "Original",
    "Report",
    "Reporting",
    "action_of",
    "compose_report",
    "kind_of",
    "original_of",
    "returns_whole",
    "which_reports",
]

WHOLE_LIMIT: Final = 50_000
"""Octets up to which RET=FULL gets the whole message back: a notice may go to a forged address."""

_DIAGNOSTIC_LIMIT: Final = 2000
_LINE: Final = 76
_ASCII_TOKEN_LIMIT: Final = 900  # a line may not exceed 998 octets (RFC 5322 2.1.1) ...
_UTF8_TOKEN_LIMIT: Final = 220  # ... of which a character may take four
_REPLY: Final = re.compile(r"[2-5][0-9][0-9](?:[ -]|\Z)")
_HOST: Final = re.compile(r"(?:[A-Za-z0-9_.:-]{1,255}|\[[0-9A-Za-z:.]{1,64}\])\Z")
_ADDRESS_TYPE: Final = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_MESSAGE_ID: Final = re.compile(rb"<[!-;=?-~]{1,250}>\Z")
_WANTED: Final = {Kind.FAILURE: Notify.FAILURE, Kind.DELAY: Notify.DELAY, Kind.SUCCESS: Notify.SUCCESS}
_CLASS: Final = {Kind.FAILURE: "45", Kind.DELAY: "4", Kind.SUCCESS: "2"}
_UNKNOWN_STATUS: Final = {Kind.FAILURE: "5.0.0", Kind.DELAY: "4.0.0", Kind.SUCCESS: "2.0.0"}
_SUBJECT: Final = {
    Kind.FAILURE: b"Undelivered mail returned to sender",
    Kind.DELAY: b"Delayed mail (still being tried)",
    Kind.SUCCESS: b"Mail delivered or relayed",
}


class Action(enum.StrEnum):
    """What was done about a recipient (RFC 3464 2.3.3)."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


class Due(msgspec.Struct, frozen=True):
    """One report that is owed: its kind and the recipients (index, outcome) that it is about."""

    kind: Kind
    results: tuple[tuple[int, Outcome], ...]


class Original(msgspec.Struct, frozen=True):
    """What of the original message a report carries: its header or all of it, in wire form."""

    octets: bytes
    is_whole: bool
    dots: DotForm


class Reporting(msgspec.Struct, frozen=True):
    """Who reports, and when. Times are milliseconds since 1970; `retry_until` is for delay notices, 0 when not known."""

    hostname: str
    now: int
    retry_until: int = 0


class Report(msgspec.Struct, frozen=True):
    """A notification ready for the queue: always from the null reverse-path, so that nothing answers it with another."""

    forward_path: Path
    content: Content
    smtputf8: bool

    @property
    def reverse_path(self) -> Path:
        """RFC 3461 6.1: `<>`."""
        return NULL_PATH


def kind_of(recipient: Recipient, outcome: Outcome) -> Kind | None:
    """The notice that NOTIFY asks for this outcome (RFC 3461 4.1, 5.2, 6); None for none. Default: failure and delay.

    Success is ours to report at final delivery, and as *relayed* where the next hop will not do it (RFC 3461 5.2.2).
    """
    if isinstance(outcome, Failed):
        kind = Kind.FAILURE
    elif isinstance(outcome, Deferred):
        kind = Kind.DELAY
    elif isinstance(outcome, Delivered) or (isinstance(outcome, Relayed) and not outcome.speaks_dsn):
        kind = Kind.SUCCESS
    else:
        return None
    asked = recipient.notify
    if asked is Notify.DEFAULT:
        return None if kind is Kind.SUCCESS else kind
    return kind if asked & _WANTED[kind] and not asked & Notify.NEVER else None


def which_reports(envelope: Envelope, results: Sequence[tuple[int, Outcome]]) -> tuple[Due, ...]:
    """The reports owed to the originator for these outcomes, at most one of each kind, failures first.

    None at all for the null reverse-path: no bounce for a bounce (RFC 5321 4.5.5). A Deferred counts as a delay notice
    due now; when it is, the scheduler knows.
    """
    if envelope.reverse_path.is_null:
        return ()
    owed: dict[Kind, list[tuple[int, Outcome]]] = {kind: [] for kind in Kind}
    for index, outcome in results:
        if (kind := kind_of(envelope.recipients[index], outcome)) is not None:
            owed[kind].append((index, outcome))
    return tuple(Due(kind, tuple(about)) for kind, about in owed.items() if about)


def returns_whole(envelope: Envelope, kind: Kind, size_bytes: int, limit: int = WHOLE_LIMIT) -> bool:
    """The report carries the whole message: a failure, RET=FULL, and small enough (RFC 3461 4.3)."""
    return kind is Kind.FAILURE and envelope.ret is Ret.FULL and size_bytes <= limit


def original_of(message: Message, octets: bytes, *, is_whole: bool) -> Original:
    """The original for a report. `octets` is the content's header with its CRLF, or with `is_whole` the content."""
    octets = message.trace + octets
    dotted = octets.startswith(b".") or b"\r\n." in octets
    return Original(octets, is_whole, message.content.dots if dotted else DotForm.NONE)


def compose_report(
    envelope: Envelope,
    results: Sequence[tuple[int, Outcome]],
    kind: Kind,
    original: Original | None,
    reporting: Reporting,
) -> Report | None:
    """The report of `kind` about `results`, which `which_reports` has chosen; None for the null reverse-path.

    `original` is None when its octets are lost; the report then has no third part (RFC 6522 3).
    """
    if envelope.reverse_path.is_null or not results:
        return None
    case = _Case(
        envelope, tuple(results), kind, reporting, envelope.smtputf8 and not _is_ascii(envelope, results, original)
    )
    boundary = _boundary(case, original)
    parts = [_text_part(case), _status_part(case)]
    if original is not None:
        parts.append(_original_part(original, case.utf8))
    body = b"".join(b"--%b\r\n%b\r\n" % (boundary, part) for part in parts) + b"--%b--\r\n" % boundary
    header = _header(case, original, boundary)
    if not (header.isascii() and body.isascii()):
        header += b"Content-Transfer-Encoding: 8bit\r\n"
    octets = header + b"\r\n" + body
    dots = original.dots if original is not None else DotForm.NONE
    content = Content(len(octets), dots, not octets.isascii(), (octets,))
    return Report(envelope.reverse_path, content, case.utf8)


class _Case(msgspec.Struct, frozen=True):
    """One report in the making; `utf8` chooses the types of RFC 6533."""

    envelope: Envelope
    results: tuple[tuple[int, Outcome], ...]
    kind: Kind
    reporting: Reporting
    utf8: bool

    def text(self, text: str) -> str:
        """`text` as this report may hold it: UTF-8, else the ASCII form of RFC 6533 3."""
        return text if self.utf8 else escape(text)

    def typed(self, address_type: str, address: str) -> str:
        """An address behind its type; in the ASCII form of a utf-8 address a backslash is escaped too (RFC 6533 3)."""
        if address_type.lower() == "utf-8" and not self.utf8:
            address = escape(address.replace("\\", "\\x{5C}"))
        return f"{address_type};{address}"


def _is_ascii(envelope: Envelope, results: Sequence[tuple[int, Outcome]], original: Original | None) -> bool:
    recipients = [envelope.recipients[index] for index, _ in results]
    return (
        envelope.reverse_path.local_part.isascii()
        and all(each.forward_path.local_part.isascii() and each.original_recipient.isascii() for each in recipients)
        and (original is None or original.octets.partition(b"\r\n\r\n")[0].isascii())
    )


def _boundary(case: _Case, original: Original | None) -> bytes:
    """A line that the original does not hold, whatever its author foresaw."""
    boundary = f"=_posthouse.{case.envelope.id_text}.{case.reporting.now:x}".encode()
    while original is not None and b"--" + boundary in original.octets:
        boundary += b"_"
    return boundary


def _header(case: _Case, original: Original | None, boundary: bytes) -> bytes:
    """The report's own header (RFC 3461 6.2, RFC 6522 3, RFC 3834 5)."""
    host, now = case.reporting.hostname.encode(), case.reporting.now
    unique = b"%b.%d.%x" % (case.envelope.id_text.encode(), case.results[0][0], now)
    lines = [
        b"Date: " + date_time(now),
        b"From: Mail Delivery System <MAILER-DAEMON@%b>" % host,
        b"To: <%b>" % mailbox_octets(case.envelope.reverse_path),
        b"Subject: " + _SUBJECT[case.kind],
        b"Message-ID: <%b@%b>" % (unique, host),
        b"Auto-Submitted: auto-replied",
        b"MIME-Version: 1.0",
        b'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="%b"' % boundary,
    ]
    if original is not None:
        about = field(original.octets.partition(b"\r\n\r\n")[0] + b"\r\n", b"Message-ID")
        if about is not None and _MESSAGE_ID.match(about):
            lines += [b"In-Reply-To: " + about, b"References: " + about]
    return b"".join(line + b"\r\n" for line in lines)


def _part(media: bytes, octets: bytes, description: bytes) -> bytes:
    """One body part; what it holds is never encoded for transfer."""
    encoding = b"7bit" if octets.isascii() else b"8bit"
    return b"Content-Type: %b\r\nContent-Description: %b\r\nContent-Transfer-Encoding: %b\r\n\r\n%b" % (
        media,
        description,
        encoding,
        octets,
    )


def _text_part(case: _Case) -> bytes:
    reporting = case.reporting
    notice = Notice(
        kind=case.kind,
        hostname=reporting.hostname,
        queue_id=case.envelope.id_text,
        arrived=date_time(case.envelope.arrived_at).decode(),
        retry_until=date_time(reporting.retry_until).decode() if reporting.retry_until else "",
        recipients=tuple(
            RecipientNotice(
                address=_mailbox_text(case.envelope.recipients[index]),
                status=_status(outcome, case.kind),
                words=outcome.reason.words,
                remote=outcome.remote,
                diagnostic=outcome.diagnostic[:_DIAGNOSTIC_LIMIT],
                is_relayed=isinstance(outcome, Relayed),
            )
            for index, outcome in case.results
        ),
    )
    octets = case.text(human_part(notice)).replace("\n", "\r\n").encode("utf-8", "replace")
    charset = b"us-ascii" if octets.isascii() else b"utf-8"
    return _part(b"text/plain; charset=" + charset, octets, b"What happened")


def _status_part(case: _Case) -> bytes:
    """The fields for programs (RFC 3464 2; RFC 6533 4)."""
    groups = [_message_fields(case), *(_recipient_fields(case, index, outcome) for index, outcome in case.results)]
    text = "\r\n".join("".join(_folded(name, case.text(value)) for name, value in group) for group in groups)
    media = b"message/global-delivery-status" if case.utf8 else b"message/delivery-status"
    return _part(media, text.encode("utf-8", "replace"), b"The same for programs")


def _original_part(original: Original, utf8: bool) -> bytes:
    if original.is_whole:
        return _part(b"message/global" if utf8 else b"message/rfc822", original.octets, b"The message")
    media = b"message/global-headers" if utf8 else b"text/rfc822-headers"
    return _part(media, original.octets, b"The header of the message")


def _message_fields(case: _Case) -> list[tuple[str, str]]:
    """RFC 3464 2.2."""
    fields = [("Original-Envelope-Id", case.envelope.envelope_id)] if case.envelope.envelope_id else []
    fields.append(("Reporting-MTA", f"dns; {case.reporting.hostname}"))
    fields.append(("Arrival-Date", date_time(case.envelope.arrived_at).decode()))
    return fields


def _recipient_fields(case: _Case, index: int, outcome: Outcome) -> list[tuple[str, str]]:
    """One recipient's fields in the order of RFC 3464 2.3."""
    recipient = case.envelope.recipients[index]
    mailbox = _mailbox_text(recipient)
    fields = []
    original_type, semicolon, original_address = recipient.original_recipient.partition(";")
    if semicolon and _ADDRESS_TYPE.match(original_type):
        fields.append(("Original-Recipient", case.typed(original_type, original_address)))
    fields.append(("Final-Recipient", case.typed("rfc822" if mailbox.isascii() else "utf-8", mailbox)))
    fields.append(("Action", action_of(outcome, case.kind)))
    fields.append(("Status", _status(outcome, case.kind)))
    if remote := _remote(outcome):
        fields.append(("Remote-MTA", f"dns; {remote}"))
    fields.append(("Diagnostic-Code", _diagnostic(outcome)))
    fields.append(("Last-Attempt-Date", date_time(case.reporting.now).decode()))
    fields.append(("Final-Log-ID", case.envelope.id_text))
    if case.kind is Kind.DELAY and case.reporting.retry_until:
        fields.append(("Will-Retry-Until", date_time(case.reporting.retry_until).decode()))
    fields.append(("X-Posthouse-Reason", outcome.reason.slug.value))
    return fields


def _mailbox_text(recipient: Recipient) -> str:
    return mailbox_octets(recipient.forward_path).decode("utf-8", "replace")


def action_of(outcome: Outcome, kind: Kind) -> Action:
    """What a report of `kind` says was done (RFC 3464 2.3.3)."""
    if kind is Kind.FAILURE:
        return Action.FAILED
    if kind is Kind.DELAY:
        return Action.DELAYED
    return Action.RELAYED if isinstance(outcome, Relayed) else Action.DELIVERED


def _status(outcome: Outcome, kind: Kind) -> str:
    """The outcome's status where it fits the action: a failure may carry 4.x.x, when trying was given up (RFC 3464 2.3.4)."""
    fits = is_enhanced(outcome.status) and outcome.status[0] in _CLASS[kind]
    return outcome.status if fits else _UNKNOWN_STATUS[kind]


def _remote(outcome: Outcome) -> str:
    """The next hop's name as a Remote-MTA of type dns may have it, an address in brackets; "" where there is none."""
    name = outcome.remote.partition(" ")[0]
    if not _HOST.match(name):
        return ""
    try:
        address = ip_address(name)
    except ValueError:
        return "" if ":" in name and name[0] != "[" else name
    return f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"


def _diagnostic(outcome: Outcome) -> str:
    """The next hop's reply as SMTP gave it, else our own words (RFC 3464 2.3.6)."""
    said = clean(outcome.diagnostic[:_DIAGNOSTIC_LIMIT])
    if _REPLY.match(said):
        return f"smtp; {said}"
    return f"X-Posthouse; {said or clean(outcome.reason.words[:_DIAGNOSTIC_LIMIT])}"


def _folded(name: str, value: str) -> str:
    """A field with its CRLF, cleaned, folded at blanks to 76 columns; a blank is put into what would burst a line."""
    lines = []
    line = f"{name}:"
    for word in clean(value).split(" "):
        limit = _ASCII_TOKEN_LIMIT if word.isascii() else _UTF8_TOKEN_LIMIT
        for start in range(0, len(word) or 1, limit):
            token = word[start : start + limit]
            if len(line) + 1 + len(token) > _LINE and line.strip() and line != f"{name}:":
                lines.append(line)
                line = ""
            line += f" {token}"
    lines.append(line)
    return "\r\n".join(lines) + "\r\n"
