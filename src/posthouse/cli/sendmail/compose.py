"""A mail as programs write it, made whole: line ends, the fields that RFC 5322 demands, the recipients it names."""

import binascii
import re
import time

from posthouse.cli.sendmail.mailboxes import read_mailboxes
from posthouse.mail.header import Field, fields, header_of

_RECIPIENT_FIELDS = (b"to", b"cc", b"bcc")
_field_line = re.compile(rb"[!-9;-~]+[ \t]*:").match
_any_line_end = re.compile(rb"\r\n|\r|\n")
_atoms = re.compile(r"[A-Za-z0-9 !#$%&'*+/=?^_`{|}~-]*").fullmatch


class Draft:
    """A message on its way: CRLF-ended octets, header and body apart."""

    def __init__(self, octets: bytes) -> None:
        self.header, self.body = _split(octets)

    @property
    def octets(self) -> bytes:
        """The whole message."""
        return self.header + b"\r\n" + self.body

    @property
    def is_8bit(self) -> bool:
        """Some octet is above 127."""
        return not self.octets.isascii()

    def recipients(self) -> list[str]:
        """The mailboxes of To, Cc and Bcc; of the Resent fields alone when there are any (RFC 5322 3.6.6). ValueError."""
        found = list(fields(self.header))
        resent = [field for field in found if field.name.lower().removeprefix(b"resent-") in _RECIPIENT_FIELDS]
        again = [field for field in resent if field.name.lower().startswith(b"resent-")]
        return [mailbox for field in again or resent for mailbox in _mailboxes_of(field)]

    def drop_bcc(self) -> None:
        """Takes Bcc and Resent-Bcc out, folded lines and all; nothing else changes."""
        self.header = b"".join(entry for entry in _entries(self.header) if _name(entry) not in (b"bcc", b"resent-bcc"))

    def complete(self, reverse_path: str, full_name: str, hostname: str, now: float) -> None:
        """Adds From, Date and Message-ID where they are missing. `now` is in seconds since 1970."""
        present = {_name(entry) for entry in _entries(self.header)}
        if b"from" not in present:
            mailbox = reverse_path or f"MAILER-DAEMON@{hostname}"
            self.header += b"From: %s<%s>\r\n" % (_display(full_name), mailbox.encode())
        if b"date" not in present:
            self.header += b"Date: %s\r\n" % _date(now).encode()
        if b"message-id" not in present:
            import secrets  # noqa: PLC0415 - most programs bring a Message-ID

            self.header += b"Message-ID: <%d.%s@%s>\r\n" % (now, secrets.token_hex(8).encode(), hostname.encode())


def read_until_dot(octets: bytes) -> bytes:
    """What stands before a line with a single dot, all when there is none (sendmail(1) without -i)."""
    if octets.startswith((b".\n", b".\r\n")) or octets == b".":
        return b""
    ends = [end + 1 for end in (octets.find(b"\n.\n"), octets.find(b"\n.\r\n")) if end >= 0]
    if octets.endswith(b"\n."):
        ends.append(len(octets) - 1)
    return octets[: min(ends)] if ends else octets


def _split(octets: bytes) -> tuple[bytes, bytes]:
    """Header and body. An mbox "From " line goes; a text without a header is all body."""
    text = _any_line_end.sub(b"\r\n", octets) if b"\r" in octets else octets.replace(b"\n", b"\r\n")
    if text and not text.endswith(b"\r\n"):
        text += b"\r\n"
    if text.startswith((b"From ", b">From ")):
        text = text.partition(b"\r\n")[2]
    if not _field_line(text):
        return b"", text.removeprefix(b"\r\n")
    header = header_of(text)
    kept = bytearray()
    for entry in _entries(header):
        if not _field_line(entry):  # the body begins without an empty line: what is no field is not in the header
            return bytes(kept), text[len(kept) :]
        kept += entry
    return header, text[len(header) :].removeprefix(b"\r\n")


def _entries(header: bytes) -> list[bytes]:
    """The fields as they stand, each with its folded lines."""
    entries: list[bytes] = []
    for line in header.splitlines(keepends=True):
        if entries and line[:1] in (b" ", b"\t"):
            entries[-1] += line
        else:
            entries.append(line)
    return entries


def _name(entry: bytes) -> bytes:
    return entry.partition(b":")[0].rstrip(b" \t").lower()


def _mailboxes_of(field: Field) -> list[str]:
    try:
        return read_mailboxes(field.value.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"the field {field.name.decode('ascii', 'replace')} cannot be read: {error}") from error


def _display(full_name: str) -> bytes:
    """A display name with the space after it, quoted or encoded where RFC 5322 and RFC 2047 ask for it."""
    name = " ".join(full_name.split())[:60]
    if not name:
        return b""
    if not name.isascii():
        return b"=?utf-8?b?%s?= " % binascii.b2a_base64(name[:15].encode(), newline=False)
    if _atoms(name):
        return name.encode() + b" "
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}" '.encode()


def _date(now: float) -> str:
    """RFC 5322 3.3, in local time; names of days and months are English whatever the locale."""
    local = time.localtime(now)
    day = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[local.tm_wday]
    month = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[local.tm_mon - 1]
    minutes = local.tm_gmtoff // 60
    sign = "-" if minutes < 0 else "+"
    zone = f"{sign}{abs(minutes) // 60:02d}{abs(minutes) % 60:02d}"
    return f"{day}, {local.tm_mday} {month} {local.tm_year} {time.strftime('%H:%M:%S', local)} {zone}"
