"""What was said on a connection, line by line, for people to read. Passwords are left out; content is not meant to be kept."""

_LONGEST_LINE = 1000
_HIDDEN = "(not shown)"


class Transcript:
    """Collects lines: `->` ours, `<-` theirs, `--` what happened between."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._unfinished = b""
        self._is_secret = False  # our next lines answer a challenge of AUTH

    def note(self, words: str) -> None:
        """Something that is no line of either side."""
        self._unfinished = b""
        self.lines.append(f"-- {words}")

    def sent(self, octets: bytes) -> None:
        """Whole lines of ours."""
        for line in octets.removesuffix(b"\r\n").split(b"\r\n"):
            if line[:5].upper() == b"AUTH ":
                self._is_secret = True
                words = line.split(b" ")
                self.lines.append(f"-> AUTH {_text(words[1])}{f' {_HIDDEN}' if len(words) > 2 else ''}")
            else:
                self.lines.append(f"-> {_HIDDEN if self._is_secret else _text(line)}")

    def received(self, octets: bytes) -> None:
        """Octets of theirs, however they are cut."""
        *lines, self._unfinished = (self._unfinished + octets).split(b"\n")
        for line in lines:
            if not line.startswith(b"334"):
                self._is_secret = False
            self.lines.append(f"<- {_text(line)}")
        self._unfinished = self._unfinished[:_LONGEST_LINE]


def _text(line: bytes) -> str:
    """Nothing in it can move a terminal's cursor."""
    text = line.rstrip(b"\r")[:_LONGEST_LINE].decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
