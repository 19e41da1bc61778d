"""Replies: a code, an enhanced status code and text lines (RFC 5321 4.2, RFC 2034, RFC 3463)."""

import re

import msgspec

LINE_OCTETS = 510
"""What we print stays under the 512 octets of RFC 5321 4.5.3.1.5, CRLF included."""

_KNOWN_LINES = 64
_KNOWN_OCTETS = 128

_reply_line = re.compile(rb"([2-5][0-5][0-9])(?:([ -])(.*+))?", re.DOTALL).fullmatch
_enhanced_code = re.compile(r"([245])\.(?:0|[1-9][0-9]{0,2})\.(?:0|[1-9][0-9]{0,2})(?= |$)").match
_UNPRINTABLE = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029), "?")


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
        """The octets on the wire, every line ended by CRLF; the enhanced code stands on each line (RFC 2034 4).

        A control character in a line, a CR or LF above all, becomes `?`: no text can make a second reply. A line too long
        for RFC 5321 4.5.3.1.5 is continued on the next.
        """
        prefix = f"{self.enhanced} " if self.enhanced else ""
        lines = self.lines
        if len(lines) == 1:
            line = lines[0]
            if line.isascii() and line.isprintable() and len(line) < LINE_OCTETS - 20:
                return f"{self.code} {prefix}{line}\r\n".encode()
        lines = tuple(part for line in lines for part in _fit(line, LINE_OCTETS - 4 - len(prefix))) or ("",)
        last = len(lines) - 1
        return "".join(
            f"{self.code}{' ' if i == last else '-'}{prefix}{line}\r\n" for i, line in enumerate(lines)
        ).encode("utf-8", "replace")

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}" if self.enhanced else f"{self.code} {self.text}"


def reply(code: int, enhanced: str, *lines: str) -> Reply:
    """A Reply from its parts: `reply(250, "2.1.0", "Sender OK")`."""
    return Reply(code, enhanced, lines)


CONTENT_WELCOME = reply(354, "", "End data with <CR><LF>.<CR><LF>")
"""The answer to `ContentWanted` that lets the content come (RFC 5321 4.1.1.4)."""


def _fit(line: str, octets: int) -> list[str]:
    """`line` made printable and cut into parts of at most `octets` octets."""
    line = line.translate(_UNPRINTABLE)
    width = octets if line.isascii() else octets // 4
    return [line[i : i + width] for i in range(0, len(line), width)] or [""]


class ReplyError(ValueError):
    """The octets are no reply, or more of one than we care to read. The session with that peer cannot go on."""


class ReplyReader:
    """Reads replies from the octets a server sends, however they are cut up.

    `receive_data` takes octets, `next_reply` gives the next whole reply. A line may end with LF alone, as some servers
    write it; control characters in the text become `?`, so that a reply can be logged and quoted as it is. Bounded by
    `line_octets` and `lines` a reply: a server that talks on without an end is an error, not a use of memory.
    """

    def __init__(self, line_octets: int = 4096, lines: int = 256) -> None:
        self._line_octets = line_octets
        self._lines_limit = lines
        self._buffer = b""
        self._code = 0
        self._lines: list[str] = []
        self._known: dict[bytes, Reply] = {}

    @property
    def is_between_replies(self) -> bool:
        """Nothing has come in beyond the replies given out."""
        return not self._buffer and not self._lines

    def receive_data(self, data: bytes) -> None:
        """Takes octets from the server."""
        self._buffer = self._buffer + data if self._buffer else data

    def next_reply(self) -> Reply | None:
        """The next whole reply; None when more octets are needed. ReplyError when what came is no reply."""
        while True:
            end = self._buffer.find(b"\n")
            if end < 0 or end > self._line_octets:
                if len(self._buffer) > self._line_octets:
                    raise ReplyError(f"a reply line of more than {self._line_octets} octets")
                return None
            line = self._buffer[: end - 1] if self._buffer.startswith(b"\r", max(end - 1, 0)) else self._buffer[:end]
            self._buffer = self._buffer[end + 1 :]
            if not self._lines and (known := self._known.get(line)) is not None:
                return known
            if self._take_line(line):
                code, lines = self._code, self._lines
                self._lines = []
                return self._remember(line, _make_reply(code, lines)) if len(lines) == 1 else _make_reply(code, lines)

    def _remember(self, line: bytes, answer: Reply) -> Reply:
        """Most replies of a session are the same few short lines: looking one up costs a tenth of reading it again."""
        if len(line) <= _KNOWN_OCTETS:
            if len(self._known) >= _KNOWN_LINES:
                self._known.clear()
            self._known[line] = answer
        return answer

    def _take_line(self, line: bytes) -> bool:
        """Adds one line to the reply being read; True when it was the last."""
        found = _reply_line(line)
        if not found:
            raise ReplyError(f"not a reply: {line[:80].decode('ascii', 'backslashreplace')!r}")
        code = int(found.group(1))
        if self._lines and code != self._code:
            raise ReplyError(f"one reply with two codes: {self._code} and {code}")
        if len(self._lines) == self._lines_limit:
            raise ReplyError(f"a reply of more than {self._lines_limit} lines")
        self._code = code
        self._lines.append((found.group(3) or b"").decode("utf-8", "replace").translate(_UNPRINTABLE))
        return found.group(2) != b"-"


def _make_reply(code: int, lines: list[str]) -> Reply:
    """Takes the enhanced code off each line that repeats it; one of another class than `code` is text (RFC 2034 4)."""
    found = _enhanced_code(lines[0])
    if not found or int(found.group(1)) != code // 100:
        return Reply(code, "", tuple(lines))
    enhanced = found.group()
    return Reply(
        code,
        enhanced,
        tuple(line[len(enhanced) + 1 :] if _starts_with_word(line, enhanced) else line for line in lines),
    )


def _starts_with_word(line: str, word: str) -> bool:
    return line.startswith(word) and line[len(word) : len(word) + 1] in ("", " ")
