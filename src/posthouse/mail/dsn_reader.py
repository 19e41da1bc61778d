"""Reads a delivery status notification back (RFC 3464, RFC 6522, RFC 6533): ours in tests, others' where we trace a bounce.

Works on octets, decodes no transfer encoding (a status part has none to decode), and answers None for what is no report.
"""

import re
from collections.abc import Iterator
from typing import Final

import msgspec

from posthouse.mail.dsn import Action
from posthouse.mail.header import Field, field, fields, header_of

_BOUNDARY: Final = re.compile(rb'boundary=(?:"([^"\r\n]{1,70})"|([^\s";]{1,70}))', re.IGNORECASE)
_STATUS_TYPES: Final = (b"message/delivery-status", b"message/global-delivery-status")
_ORIGINAL_TYPES: Final = (b"message/rfc822", b"message/global", b"text/rfc822-headers", b"message/global-headers")
_PARTS_LIMIT: Final = 16


class ReportedRecipient(msgspec.Struct, frozen=True):
    """One recipient's fields, values as written, "" where absent: addresses with their type ("rfc822;a@example.org")."""

    final_recipient: str
    action: Action
    status: str
    original_recipient: str = ""
    remote: str = ""
    diagnostic: str = ""
    will_retry_until: str = ""


class ReadReport(msgspec.Struct, frozen=True):
    """A report: about the message, about each recipient, and what of the original it returns."""

    reporting: str
    envelope_id: str
    recipients: tuple[ReportedRecipient, ...]
    text: bytes
    original_type: str
    original: bytes


def parse_report(octets: bytes) -> ReadReport | None:
    """The report that a message is; None when it is not a multipart/report with a well-formed status part."""
    header = header_of(octets)
    content_type = field(header, b"Content-Type") or b""
    boundary = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith(b"multipart/report") or boundary is None:
        return None
    text, status, original, original_type = b"", None, b"", b""
    for media, body in _parts(octets[len(header) :], boundary[1] or boundary[2]):
        if media in _STATUS_TYPES:
            status = body
        elif media in _ORIGINAL_TYPES:
            original, original_type = body, media
        elif not text:
            text = body
    if status is None:
        return None
    return _read_status(status, text, original_type.decode(), original)


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(media type, octets) of each part."""
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary, _PARTS_LIMIT)[1:]:
        if part.startswith(b"--"):
            return
        content = part.partition(b"\r\n")[2]
        header = header_of(content)
        media = (field(header, b"Content-Type") or b"text/plain").partition(b";")[0].strip().lower()
        yield media, content[len(header) + 2 :]


def _read_status(status: bytes, text: bytes, original_type: str, original: bytes) -> ReadReport | None:
    groups = [list(fields(group + b"\r\n")) for group in status.strip(b"\r\n").split(b"\r\n\r\n")]
    about = _Group(groups[0])
    recipients = [_recipient(_Group(group)) for group in groups[1:] if group]
    known = tuple(each for each in recipients if each is not None)
    reporting = about.get(b"reporting-mta")
    if not reporting or not known or len(known) < len(recipients):
        return None
    return ReadReport(reporting, about.get(b"original-envelope-id"), known, text, original_type, original)


class _Group:
    """The fields of one group, by lower-case name."""

    def __init__(self, found: list[Field]) -> None:
        self._values = {each.name.lower(): each.value.decode("utf-8", "replace") for each in reversed(found)}

    def get(self, name: bytes) -> str:
        return self._values.get(name, "")


def _recipient(group: _Group) -> ReportedRecipient | None:
    try:
        action = Action(group.get(b"action").partition("(")[0].strip().lower())
    except ValueError:
        return None
    final, status = group.get(b"final-recipient"), group.get(b"status").partition("(")[0].strip()
    if not final or not status:
        return None
    return ReportedRecipient(
        final,
        action,
        status,
        group.get(b"original-recipient"),
        group.get(b"remote-mta"),
        group.get(b"diagnostic-code"),
        group.get(b"will-retry-until"),
    )
