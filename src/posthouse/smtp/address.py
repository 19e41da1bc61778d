"""Paths and mailboxes (RFC 5321 4.1.2, 4.1.3; RFC 6531 3.3).

One grammar for what a client says, what we say, and what a configuration holds. What it reads, it can print and read back
the same. It takes RFC 5321's grammar with these choices:

- a source route is read and dropped (RFC 5321 4.1.1.3, appendix C);
- an empty quoted local part, a trailing dot and a domain that looks like a bare IPv4 address are refused;
- `_` may stand in a domain's labels, since real devices call themselves so;
- of address literals only the registered tags are read: none (IPv4) and `IPv6`;
- U-labels become A-labels at once (UTS 46, then RFC 5891), so a `Path.domain` is always lower-case ASCII.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

import msgspec

LOCAL_PART_OCTETS = 64  # RFC 5321 4.5.3.1.1
DOMAIN_OCTETS = 255  # RFC 5321 4.5.3.1.2
PATH_OCTETS = 256  # RFC 5321 4.5.3.1.3, with the angle brackets

ATEXT = rb"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
LABEL = rb"[A-Za-z0-9_](?:[A-Za-z0-9_\-]{0,61}[A-Za-z0-9_])?"
DOT_STRING = rb"[%s]++(?>(?:\.[%s]++)*)" % (ATEXT, ATEXT)
DOMAIN = rb"%s(?>(?:\.%s)*)" % (LABEL, LABEL)

_common_mailbox = re.compile(rb"(%s)@(%s)" % (DOT_STRING, DOMAIN)).fullmatch
_dot_string = re.compile(rb"[%s\x80-\xff]++(?>(?:\.[%s\x80-\xff]++)*)" % (ATEXT, ATEXT)).fullmatch
_quoted_string = re.compile(rb'"((?>(?:[\x20\x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\x20-\x7e])*))"').match
_domain = re.compile(DOMAIN).fullmatch
_source_route = re.compile(rb"@[^@,:]++(?>(?:,@[^@,:]++)*):").match
_undo_quoting = re.compile(rb"\\(.)").sub
_do_quoting = re.compile(rb'(["\\])').sub
_unprintable = re.compile(rb"[\x00-\x1f\x7f]").search


class AddressError(ValueError):
    """The text is not a path. `enhanced` is 5.1.3 or 5.1.7, 5.6.7 for UTF-8 without SMTPUTF8; the message says what is wrong."""

    def __init__(self, enhanced: str, words: str) -> None:
        super().__init__(words)
        self.enhanced = enhanced
        self.words = words


class Path(msgspec.Struct, frozen=True):
    """A reverse-path or forward-path, source route already dropped.

    `local_part` is opaque octets with the quoting undone. `domain` is lower case with A-labels, without a trailing dot;
    an address literal in its brackets ("[192.0.2.1]", "[IPv6:2001:db8::1]"); "" for the null path and for `<postmaster>`.
    """

    local_part: bytes
    domain: str

    @property
    def is_null(self) -> bool:
        """`<>`, the reverse-path of notifications (RFC 5321 4.5.5)."""
        return not self.local_part and not self.domain

    @property
    def is_ascii(self) -> bool:
        """A next hop needs no SMTPUTF8 to take this path; a domain given in U-labels is held in A-labels anyway."""
        return self.local_part.isascii()

    def encode(self) -> bytes:
        """The path's octets without its angle brackets, quoted where the grammar asks for it; b"" for the null path.

        AddressError when the local part holds a control character, which no path can carry.
        """
        local_part = self.local_part
        if not _dot_string(local_part) and local_part:
            if _unprintable(local_part):
                raise AddressError("5.1.3", "A local part cannot hold control characters")
            local_part = b'"' + _do_quoting(rb"\\\1", local_part) + b'"'
        return b"%s@%s" % (local_part, self.domain.encode()) if self.domain else local_part

    def __str__(self) -> str:
        """As people read it: `user@example.org`; `<>` for the null path."""
        return "<>" if self.is_null else self.encode().decode("utf-8", "backslashreplace")


NULL_PATH = Path(b"", "")
POSTMASTER = Path(b"postmaster", "")
"""`RCPT TO:<postmaster>`: the one mailbox that needs no domain (RFC 5321 4.5.1)."""


def parse_mailbox(text: bytes, *, smtputf8: bool = True) -> Path:
    """The mailbox in `text`, without angle brackets and without a source route. AddressError when it is none."""
    common = _common_mailbox(text)
    if common and len(text) <= LOCAL_PART_OCTETS:  # short enough for every limit at once
        local_part, domain = common.groups()
        if domain[-1] >= 0x3A:  # ends with a letter: no bare IPv4 address
            return Path(local_part, domain.decode().lower())
    if len(text) > PATH_OCTETS - 2:
        raise AddressError("5.1.3", f"The address is longer than {PATH_OCTETS - 2} octets")
    if not text.isascii():
        _require_utf8(text, smtputf8=smtputf8)
    local_part, domain = _split_mailbox(text)
    path = Path(local_part, parse_domain(domain, smtputf8=smtputf8))
    if len(path.encode()) > PATH_OCTETS - 2:  # A-labels are longer than U-labels
        raise AddressError("5.1.3", f"The address is longer than {PATH_OCTETS - 2} octets")
    return path


def parse_path(text: bytes, *, smtputf8: bool = False) -> Path:
    """The path that stood in angle brackets: a mailbox, perhaps behind a source route, which is dropped.

    Neither the null path nor `postmaster` without a domain: `parse_reverse_path` and `parse_forward_path` know those.
    """
    if text.startswith(b"@"):
        route = _source_route(text)
        if not route:
            raise AddressError("5.1.3", "The local part is missing")
        for domain in route.group()[1:-1].split(b",@"):
            parse_domain(domain, smtputf8=smtputf8)
        text = text[route.end() :]
    return parse_mailbox(text, smtputf8=smtputf8)


def parse_reverse_path(text: bytes, *, smtputf8: bool = False) -> Path:
    """What stood in the angle brackets of MAIL. AddressError has 5.1.7, or 5.6.7."""
    if not text:
        return NULL_PATH
    try:
        return parse_path(text, smtputf8=smtputf8)
    except AddressError as error:
        raise AddressError("5.1.7" if error.enhanced == "5.1.3" else error.enhanced, error.words) from error


def parse_forward_path(text: bytes, *, smtputf8: bool = False) -> Path:
    """What stood in the angle brackets of RCPT. `postmaster` needs no domain, in any case of letters (RFC 5321 4.5.1)."""
    if text.lower() == b"postmaster":
        return POSTMASTER
    if not text:
        raise AddressError("5.1.3", "The null path is nobody's mailbox")
    return parse_path(text, smtputf8=smtputf8)


def parse_domain(text: bytes, *, smtputf8: bool = True) -> str:
    """A domain in lower case and A-labels, or an address literal in its usual form. AddressError when it is neither."""
    if text.startswith(b"["):
        return _parse_literal(text)
    if not text.isascii():
        text = _to_a_labels(_require_utf8(text, smtputf8=smtputf8))
    if not _domain(text):
        raise AddressError("5.1.3", _what_is_wrong_with(text))
    if len(text) > DOMAIN_OCTETS:
        raise AddressError("5.1.3", f"The domain is longer than {DOMAIN_OCTETS} octets")
    if text[text.rfind(b".") + 1 :].isdigit():
        raise AddressError("5.1.3", "A domain does not end with a number; put an IP address in square brackets")
    return text.decode().lower()


def _split_mailbox(text: bytes) -> tuple[bytes, bytes]:
    """Local part (quoting undone) and domain."""
    if text.startswith(b'"'):
        quoted = _quoted_string(text)
        if not quoted:
            raise AddressError("5.1.3", "The quoted local part does not end, or holds a control character")
        local_part, end = _undo_quoting(rb"\1", quoted.group(1)), quoted.end()
    else:
        end = text.find(b"@") if b"@" in text else len(text)
        local_part = text[:end]
        if local_part and not _dot_string(local_part):
            raise AddressError("5.1.3", "The local part holds what must be quoted, or a misplaced dot")
    if not local_part:
        raise AddressError("5.1.3", "The local part is missing")
    if len(local_part) > LOCAL_PART_OCTETS:
        raise AddressError("5.1.3", f"The local part is longer than {LOCAL_PART_OCTETS} octets")
    if end == len(text) or not text.startswith(b"@", end):
        raise AddressError("5.1.3", "The address has no domain")
    return local_part, text[end + 1 :]


def _require_utf8(text: bytes, *, smtputf8: bool) -> str:
    if not smtputf8:
        raise AddressError("5.6.7", "An address that is not ASCII needs the SMTPUTF8 parameter of MAIL")
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise AddressError("5.1.3", "The address is not valid UTF-8") from error


def _to_a_labels(domain: str) -> bytes:
    import idna  # noqa: PLC0415  its tables are large and `posthouse sendmail` must start quickly

    try:
        return idna.encode(domain, uts46=True)
    except (UnicodeError, ValueError, IndexError) as error:
        raise AddressError("5.1.3", "The domain is not a valid internationalised domain name") from error


def _parse_literal(text: bytes) -> str:
    inner = text[1:-1].decode("ascii", "replace")
    if text.endswith(b"]") and "%" not in inner:  # a zone id means nothing outside its machine
        try:
            return f"[IPv6:{IPv6Address(inner[5:])}]" if inner[:5].lower() == "ipv6:" else f"[{IPv4Address(inner)}]"
        except AddressValueError:
            pass
    raise AddressError("5.1.3", "An address literal is [192.0.2.1] or [IPv6:2001:db8::1]")


def _what_is_wrong_with(domain: bytes) -> str:
    if not domain:
        return "The domain is missing"
    if b"@" in domain:
        return "The address has more than one @ outside quotes"
    if domain.endswith(b"."):
        return "The domain ends with a dot"
    return "The domain is not one: letters, digits and hyphens, labels of at most 63 octets joined by single dots"
