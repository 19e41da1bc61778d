r"""Content: its end, its line endings, its dots (RFC 5321 4.1.1.4, 4.5.2, 2.3.8; RFC 3030).

Only CRLF.CRLF ends the content of DATA. A reader takes octets as they come and keeps back the few that cannot be judged yet:
at most four, `\r\n.\r`, the longest beginning of the end. What it has judged never splits a CRLF, so that bare CR and LF are
seen by comparing lengths, piece by piece, and never line by line. Everything a reader finds depends on the octets alone,
not on how they were cut: of two faults, the one that stands first counts.

NUL and long lines pass unchanged: they harm no next hop's idea of where a message ends.
"""

import enum
import re

import msgspec

from posthouse.smtp.event import DotForm

END = b"\r\n.\r\n"
HEADER_OCTETS = 256 * 1024
"""Octets in which the header of a message must end, unless the settings say otherwise."""

GATHER_OCTETS = 16384
"""Smaller pieces are joined until they have this size: a client that sends octet by octet must not cost an object for each."""

_bare = re.compile(rb"\r(?!\n)|(?<!\r)\n").search


class LineEndings(enum.StrEnum):
    """What a bare CR or LF in content gets: the message is refused, or it becomes CRLF."""

    STRICT = "strict"
    NORMALIZE = "normalize"


class Fault(enum.IntEnum):
    """Why content cannot be taken. After a bare CR or LF the end of data cannot be trusted either."""

    NONE = 0
    BARE_LINE_END = 1
    TOO_LARGE = 2
    HEADER_TOO_LONG = 3


# Bound here because an attribute of an enum class costs seven times a module's.
_NO_FAULT, _NO_DOTS, _NORMALIZE = Fault.NONE, DotForm.NONE, LineEndings.NORMALIZE


class ContentLimits(msgspec.Struct, frozen=True):
    """How much content may be, in octets of its wire form; `size` 0 is no limit."""

    size: int = 0
    header: int = HEADER_OCTETS
    line_endings: LineEndings = LineEndings.STRICT


class ContentReader:
    """Reads the content of one message, of DATA by `read_until_end` or, when `chunked`, of BDAT by `read_chunk` and `finish`.

    Attributes: `fault`; `ended` (DATA's end was seen); `size_bytes`, `dots` and `is_8bit` of what was judged.
    """

    def __init__(self, limits: ContentLimits, *, chunked: bool = False) -> None:
        self.fault = _NO_FAULT
        self.ended = False
        self.size_bytes = 0
        self.dots = _NO_DOTS
        self.is_8bit = False
        self._dot_form = DotForm.PLAIN if chunked else DotForm.STUFFED
        self._limit = limits.size or (1 << 62)
        self._header_limit = limits.header
        self._in_header = True
        self._header_tail = b"\r\n"
        self._normalizer = Normalizer(stuffed=not chunked) if limits.line_endings is _NORMALIZE else None
        self._held = b"\r\n"  # content begins at a line's start: as if a CRLF, never reported, stood before it
        self._skip = 2
        self._pieces: list[bytes] = []
        self._gathered = 0

    def read_until_end(self, buffer: bytes, at: int) -> int:
        """Takes what stands in `buffer` from `at` on; says where in it the first octet behind the content stands."""
        held = self._held
        octets = held + (buffer[at:] if at else buffer)
        dot = octets.find(b"\r\n.")
        if dot >= 0:
            end = octets.find(END, dot)
            if end >= 0:
                if end != dot:
                    self.dots = DotForm.STUFFED
                self.ended = True
                self._held = b""
                self._judge(octets[self._skip : end + 2])
                self._flush_normalizer()
                return at + end + len(END) - len(held)
        cut = len(octets) - _undecided(octets)
        if 0 <= dot < cut:
            self.dots = DotForm.STUFFED
        self._keep_back(octets, cut)
        return len(buffer)

    def read_chunk(self, octets: bytes) -> None:
        """Takes octets of a chunk; a CRLF may be cut by the borders of chunks."""
        octets = self._held + octets
        if b"\r\n." in octets:
            self.dots = DotForm.PLAIN
        self._keep_back(octets, len(octets) - (2 if octets.endswith(b"\r\n") else octets.endswith(b"\r")))

    def finish(self) -> None:
        """The last chunk has been read whole. A last line without CRLF gets one: stored lines all end with it."""
        held, self._held = self._held[self._skip :], b""
        self.ended = True
        if held:
            self._judge(held)
        elif not self._skip:
            self._judge(b"\r\n")
        self._flush_normalizer()

    def take_piece(self) -> bytes:
        """The next piece to report; b"" when too little has come. All that is left once the content has ended."""
        if not self._gathered or (self._gathered < GATHER_OCTETS and not self.ended):
            return b""
        pieces = self._pieces
        piece = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._gathered = 0
        return piece

    def _keep_back(self, octets: bytes, cut: int) -> None:
        self._held = octets[cut:]
        if cut > self._skip:
            self._judge(octets[self._skip : cut])
        if cut:
            self._skip = 0

    def _judge(self, octets: bytes) -> None:
        """Octets that surely belong to the content and do not split a CRLF."""
        normalizer = self._normalizer
        if normalizer:
            octets = normalizer.take(octets)
            if normalizer.has_dots:
                self.dots = self._dot_form
        if octets and not self.fault:
            self._keep(octets)

    def _keep(self, octets: bytes) -> None:
        """Octets as they will be stored, unless they are at fault."""
        before = self.size_bytes
        self.size_bytes = before + len(octets)
        lines = octets.splitlines()
        open_end = 0 if octets.endswith((b"\r", b"\n")) else 2
        # Each CRLF takes two octets with it, a bare CR or LF one: cheaper than three counts.
        is_clean = len(b"".join(lines)) + 2 * len(lines) == len(octets) + open_end
        if self._in_header:
            self._look_for_header_end(octets, before)
        if not is_clean or self.size_bytes > self._limit or self.fault:
            self._find_first_fault(octets, before, is_clean=is_clean)
        if self.fault:
            self._pieces.clear()
            self._gathered = 0
            return
        if not self.is_8bit and not octets.isascii():
            self.is_8bit = True
        self._pieces.append(octets)
        self._gathered += len(octets)

    def _look_for_header_end(self, octets: bytes, before: int) -> None:
        tail = self._header_tail
        window = tail + octets
        end = window.find(b"\r\n\r\n")
        self._header_tail = window[-3:]
        self._in_header = end < 0
        if (before + end - len(tail) > self._header_limit) if end >= 0 else (self.size_bytes > self._header_limit + 3):
            self.fault = Fault.HEADER_TOO_LONG

    def _find_first_fault(self, octets: bytes, before: int, *, is_clean: bool) -> None:
        """Of the faults in `octets` the one that stands first, whatever the pieces were."""
        faults = []
        if not is_clean and (bare := _bare(octets)):
            faults.append((before + bare.start(), Fault.BARE_LINE_END))
        if self.size_bytes > self._limit:
            faults.append((self._limit, Fault.TOO_LARGE))
        if self.fault is Fault.HEADER_TOO_LONG:
            faults.append((self._header_limit + 3, Fault.HEADER_TOO_LONG))  # the octet that proves it
        self.fault = min(faults)[1]

    def _flush_normalizer(self) -> None:
        rest = self._normalizer.flush() if self._normalizer else b""
        if rest and not self.fault:
            self._keep(rest)


class Normalizer:
    r"""Makes each bare CR and LF a CRLF, for devices that cannot do better.

    That may put a dot alone on a line, where it would end the content at the next hop: such a dot is doubled, in content that
    is dot-stuffed anyway. So no bare CR or LF comes out, and no CRLF.CRLF.
    """

    def __init__(self, *, stuffed: bool) -> None:
        self.has_dots = False
        self._stuffed = stuffed
        self._held = b"\r\n"
        self._skip = 2

    def take(self, octets: bytes) -> bytes:
        """The normal form of `octets`, which do not split a CRLF, but for a line's beginning that is kept back."""
        text = octets.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        text = self._held + text
        if b"\r\n." in text:
            self.has_dots = True
            while self._stuffed and END in text:  # twice at most: the ends of two such lines may overlap
                text = text.replace(END, b"\r\n..\r\n")
        cut = len(text) - (3 if text.endswith(b"\r\n.") else 2 if text.endswith(b"\r\n") else 0)
        self._held = text[cut:]
        normal = text[self._skip : cut]
        if cut:
            self._skip = 0
        return normal

    def flush(self) -> bytes:
        """What was kept back; the content has ended."""
        rest, self._held = self._held[self._skip :], b""
        return rest


def _undecided(octets: bytes) -> int:
    """How many octets at the end may be the beginning of the end."""
    if octets.endswith(b"\n"):
        return 2 if octets.endswith(b"\r\n") else 0
    if octets.endswith(b"."):
        return 3 if octets.endswith(b"\r\n.") else 0
    if octets.endswith(b"\r"):
        return 4 if octets.endswith(b"\r\n.\r") else 1
    return 0
