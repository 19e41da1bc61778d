"""Replies: a code, an enhanced status code and text lines (RFC 5321 4.2, RFC 2034, RFC 3463)."""

import msgspec


class Reply(msgspec.Struct, frozen=True):
    """One SMTP reply.

    `code` is the three-digit code of RFC 5321 4.2.1. `enhanced` is "5.7.1" or the like, "" where the grammar has none
    (the greeting, EHLO, 334, 354). `lines` holds at least one line of text, without code and without CRLF.
    """

    code: int
    enhanced: str
    lines: tuple[str, ...]

    @property
    def is_positive(self) -> bool:
        """2yz or 3yz."""
        return self.code < 400

    @property
    def is_transient(self) -> bool:
        """4yz: trying again later may succeed."""
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        """5yz: trying the same again is futile."""
        return self.code >= 500

    @property
    def text(self) -> str:
        """All lines on one line, for logs and diagnostics."""
        return " ".join(self.lines)

    def encode(self) -> bytes:
        """The octets on the wire, every line ended by CRLF; the enhanced code stands on each line (RFC 2034 4)."""
        prefix = f"{self.enhanced} " if self.enhanced else ""
        last = len(self.lines) - 1
        return "".join(
            f"{self.code}{' ' if i == last else '-'}{prefix}{line}\r\n" for i, line in enumerate(self.lines)
        ).encode("utf-8", "surrogateescape")

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}" if self.enhanced else f"{self.code} {self.text}"


def reply(code: int, enhanced: str, *lines: str) -> Reply:
    """A Reply from its parts: `reply(250, "2.1.0", "Sender OK")`."""
    return Reply(code, enhanced, lines)
