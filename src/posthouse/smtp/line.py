"""Command lines out of octets, however these are cut (RFC 5321 2.3.8, 4.5.3.1.4).

Only CRLF ends a line. Octets up to a bare LF are handed out too, as a fault, so that whoever typed them gets an answer; but
what follows a bare LF is still the same line to RFC 5321, so it is a fault as well, up to and with the next CRLF. Hence no two
servers can disagree about which commands a client gave.
"""

import enum
from collections.abc import Callable

import msgspec

HEAD_OCTETS = 512
"""Of a line at fault this much is kept for the record. No line's limit is less."""

ENDLESS_OCTETS = 65536
"""A line of more octets is not waited for."""


PROGRESS_OCTETS = 4096
"""Octets of content that count as progress, as a line does."""


class LineFault(enum.Enum):
    """Why a line cannot be read as a command."""

    TOO_LONG = "too-long"
    BARE_LF = "bare-lf"
    ENDLESS = "endless"


class BadLine(msgspec.Struct, frozen=True):
    """A line that cannot be read; `head` holds its first octets."""

    head: bytes
    fault: LineFault


class Inbox:
    """Octets received and not yet used: `buffer` from `at` on. A reader of content takes from them and moves `at`.

    `mark` changes with each line and each PROGRESS_OCTETS of content that were used.
    """

    __slots__ = (
        "_after_bare_lf",
        "_head",
        "_last",
        "_lf_suffices",
        "_since_mark",
        "_swallowed",
        "at",
        "buffer",
        "mark",
    )

    def __init__(self, *, lf_suffices: bool) -> None:
        self.buffer = b""
        self.at = 0
        self.mark = 0
        self._since_mark = 0
        self._lf_suffices = lf_suffices
        self._after_bare_lf = False
        self._head = b""
        self._last = b""
        self._swallowed = 0

    def __len__(self) -> int:
        return len(self.buffer) - self.at

    def receive(self, data: bytes) -> None:
        """More octets."""
        at = self.at
        self.buffer = data if at == len(self.buffer) else self.buffer[at:] + data
        self.at = 0

    def clear(self) -> None:
        """Throws away all that was received, a line half read included."""
        self.buffer = self._head = b""
        self.at = self._swallowed = 0
        self._after_bare_lf = False

    def note_used(self, octets: int) -> None:
        """A reader of content has taken so many octets."""
        self._since_mark += octets
        if self._since_mark >= PROGRESS_OCTETS:
            self._since_mark = 0
            self.mark += 1

    def next_line(self, limit: Callable[[bytes], int]) -> bytes | BadLine | None:
        """The next line without its CRLF; None when it has not come whole. `limit` tells the octets a line may have by its head."""
        buffer, at = self.buffer, self.at
        if at == len(buffer):
            return None
        end = buffer.find(b"\n", at)
        if end < 0:
            return self._swallow(limit) if len(buffer) - at > HEAD_OCTETS or self._head else None
        self.at = end + 1
        line = buffer[at:end]
        if len(line) < HEAD_OCTETS and line.endswith(b"\r") and not self._after_bare_lf and not self._head:
            self.mark += 1
            return line[:-1]
        return self._judge(line, limit)

    def _judge(self, line: bytes, limit: Callable[[bytes], int]) -> bytes | BadLine:
        self.mark += 1
        is_crlf = (line or self._last).endswith(b"\r")
        was_bare = self._after_bare_lf
        octets = self._swallowed + len(line)
        head = self._head or line[:HEAD_OCTETS]
        self._head = self._last = b""
        self._swallowed = 0
        self._after_bare_lf = not is_crlf and not self._lf_suffices
        if octets > ENDLESS_OCTETS:
            return BadLine(head, LineFault.ENDLESS)
        if octets >= limit(head):
            return BadLine(head, LineFault.TOO_LONG)
        if was_bare or self._after_bare_lf:
            return BadLine(head, LineFault.BARE_LF)
        return line[:-1] if is_crlf else line

    def _swallow(self, limit: Callable[[bytes], int]) -> BadLine | None:
        """A line over its limit is not kept while its end is awaited."""
        waiting = self.buffer[self.at :]
        head = self._head or waiting[:HEAD_OCTETS]
        if not self._head and len(waiting) < limit(head):
            return None
        self._head = head
        self._last = waiting[-1:] or self._last
        self._swallowed += len(waiting)
        self.buffer = b""
        self.at = 0
        if self._swallowed <= ENDLESS_OCTETS:
            return None
        self.mark += 1
        return BadLine(head, LineFault.ENDLESS)
