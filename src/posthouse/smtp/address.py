"""Paths and mailboxes (RFC 5321 4.1.2, 4.1.3; RFC 6531 3.3)."""

import msgspec


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


NULL_PATH = Path(b"", "")
