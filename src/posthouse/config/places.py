"""The line of every key in a TOML text, which tomllib does not tell.

The text has passed tomllib, so it is well-formed; this only follows its outline: headers, keys, and the nesting of
strings, arrays and inline tables. A key's path is a tuple of names and, in arrays, numbers: ("listener", 0, "address").
"""

from collections.abc import Mapping

KeyPath = tuple[str | int, ...]

_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
_SPACE = " \t"
_ESCAPES = {"b": "\b", "t": "\t", "n": "\n", "f": "\f", "r": "\r", '"': '"', "\\": "\\"}


def find_places(text: str) -> Mapping[KeyPath, int]:
    """The line (from 1) on which each key, array item and table of a well-formed TOML text begins."""
    outline = _Outline(text)
    outline.read()
    return outline.places


class _Outline:
    def __init__(self, text: str) -> None:
        self.places: dict[KeyPath, int] = {}
        self._text = text + "\n"
        self._at = 0
        self._line = 1
        self._table: KeyPath = ()
        self._count: dict[KeyPath, int] = {}  # elements so far of each array of tables

    def read(self) -> None:
        while self._skip_blank():
            if self._peek() == "[":
                self._header()
            else:
                self._pair(self._table)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _step(self, count: int = 1) -> None:
        self._line += self._text.count("\n", self._at, self._at + count)
        self._at += count

    def _skip_blank(self) -> bool:
        """Passes over white space, line ends and comments; False at the end of the text."""
        while self._at < len(self._text):
            character = self._text[self._at]
            if character == "#":
                self._step(self._text.index("\n", self._at) - self._at)
            elif character in " \t\r\n":
                self._step()
            else:
                return True
        return False

    def _header(self) -> None:
        is_array = self._text.startswith("[[", self._at)
        line = self._line
        self._step(2 if is_array else 1)
        names = self._dotted()
        self._step(2 if is_array else 1)
        path = (*self._resolve(names[:-1]), names[-1])
        if is_array:
            index = self._count.get(path, 0)
            self._count[path] = index + 1
            self.places.setdefault(path, line)
            path += (index,)
        elif path in self._count:
            path += (self._count[path] - 1,)
        self.places.setdefault(path, line)
        self._table = path

    def _resolve(self, names: list[str]) -> KeyPath:
        """A table's path with, for each array of tables on it, the number of its last element."""
        path: KeyPath = ()
        for name in names:
            path += (name,)
            if path in self._count:
                path += (self._count[path] - 1,)
        return path

    def _pair(self, table: KeyPath) -> None:
        line = self._line
        path = table
        for name in self._dotted():
            path += (name,)
            self.places.setdefault(path, line)
        self._step()  # the "="
        self._skip_blank()
        self._value(path)

    def _dotted(self) -> list[str]:
        names = []
        while True:
            self._skip_spaces()
            names.append(self._string() if self._peek() in "\"'" else self._bare())
            self._skip_spaces()
            if self._peek() != ".":
                return names
            self._step()

    def _skip_spaces(self) -> None:
        while self._peek() in _SPACE:
            self._step()

    def _bare(self) -> str:
        start = self._at
        while self._peek() in _BARE:
            self._at += 1
        return self._text[start : self._at]

    def _value(self, path: KeyPath) -> None:
        opening = self._peek()
        if opening == "[":
            self._array(path)
        elif opening == "{":
            self._inline_table(path)
        elif opening in "\"'":
            self._string()
        else:  # numbers, dates, true and false
            while self._peek() not in ",]}#\n":
                self._at += 1

    def _array(self, path: KeyPath) -> None:
        self._step()
        index = 0
        while self._skip_blank() and self._peek() != "]":
            if self._peek() == ",":
                self._step()
                continue
            self.places[(*path, index)] = self._line
            self._value((*path, index))
            index += 1
        self._step()

    def _inline_table(self, path: KeyPath) -> None:
        self._step()
        while self._skip_blank() and self._peek() != "}":
            if self._peek() == ",":
                self._step()
            else:
                self._pair(path)
        self._step()

    def _string(self) -> str:
        quote = self._peek()
        fence = quote * 3 if self._text.startswith(quote * 3, self._at) else quote
        start = self._at + len(fence)
        self._step(len(fence))
        while not self._text.startswith(fence, self._at):
            self._step(2 if quote == '"' and self._peek() == "\\" else 1)
        inside = self._text[start : self._at]
        self._step(len(fence))
        while len(fence) == 3 and self._peek() == quote:  # up to two quotes may stand before the closing three
            self._step()
        return _unescape(inside) if quote == '"' else inside


def _unescape(text: str) -> str:
    """The basic string's escapes undone, as far as keys have them."""
    parts = text.split("\\")
    out = [parts[0]]
    skip = False
    for part in parts[1:]:
        if skip:
            out.append(part)
            skip = False
        elif not part:  # an escaped backslash: the next part is plain
            out.append("\\")
            skip = True
        elif part[0] in "uU":
            width = 4 if part[0] == "u" else 8
            out.append(chr(int(part[1 : 1 + width], 16)) + part[1 + width :])
        else:
            out.append(_ESCAPES.get(part[0], part[0]) + part[1:])
    return "".join(out)
