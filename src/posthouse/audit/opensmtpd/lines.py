"""smtpd.conf(5) as words: comments, quotes, macros, includes and braces undone, each word with its place.

A statement ends with its line, unless a backslash stands at the end or a brace is open. The words of the language and the
strings that people chose are told apart by the quotes alone, as in smtpd's own parser (usr.sbin/smtpd/parse.y).
"""

import glob
from collections.abc import Callable
from pathlib import Path

import msgspec

_PUNCTUATION = "{}<>,=!()"
_DEEPEST = 16  # includes; smtpd would run out of files


class Word(msgspec.Struct, frozen=True):
    """One word and where it stands. `is_quoted`: it can't be a word of the language."""

    text: str
    file: str
    line: int
    is_quoted: bool = False

    def says(self, *words: str) -> bool:
        """It is one of these words of the language."""
        return not self.is_quoted and self.text in words


class Unreadable(ValueError):
    """The configuration stops being readable at a line; `words` says what stands there."""

    def __init__(self, file: str, line: int, words: str) -> None:
        super().__init__(f"{file}:{line}: {words}")
        self.file = file
        self.line = line
        self.words = words


Statement = tuple[Word, ...]


def read_statements(path: Path) -> list[Statement]:
    """All statements of the file and what it includes, in order. Unreadable when one can't be read."""
    return _Reader().read(path, 0)


class _Reader:
    def __init__(self) -> None:
        self.macros: dict[str, str] = {}

    def read(self, path: Path, depth: int) -> list[Statement]:
        try:
            text = path.read_text(errors="surrogateescape")
        except (OSError, ValueError) as error:
            raise Unreadable(str(path), 0, f"it can't be read: {error}") from None
        found: list[Statement] = []
        for statement in _statements(_words(text, str(path), self.macros)):
            if statement[0].says("include") and len(statement) == 2:
                found += self._include(statement[1], path, depth)
            else:
                found.append(statement)
        return found

    def _include(self, name: Word, path: Path, depth: int) -> list[Statement]:
        if depth >= _DEEPEST:
            raise Unreadable(name.file, name.line, "files include one another without end")
        pattern = name.text if name.text.startswith("/") else str(path.parent / name.text)
        found: list[Statement] = []
        for one in sorted(glob.glob(pattern)) or [pattern]:  # noqa: PTH207 - the pattern may be absolute
            found += self.read(Path(one), depth + 1)
        return found


def _words(text: str, file: str, macros: dict[str, str]) -> list[Word]:
    """The words of a text; "\\n" stands for the end of a line. Macros are put in as they are defined, like smtpd does."""
    found: list[Word] = []
    line = 1
    place = 0
    while place < len(text):
        char = text[place]
        if char == "\\" and text[place + 1 : place + 2] == "\n":
            line, place = line + 1, place + 2
        elif char == "\n":
            found.append(Word("\n", file, line))
            line, place = line + 1, place + 1
        elif char in " \t\r":
            place += 1
        elif char == "#":
            place = _end_of_line(text, place)
        elif char in "\"'":
            end, value = _quoted(text, place, file, line)
            found.append(Word(value, file, line, is_quoted=True))
            line, place = line + text.count("\n", place, end), end
        elif char == "$":
            end = _while(text, place + 1, lambda one: one.isalnum() or one == "_")
            found += _macro(text[place + 1 : end], Word("", file, line), found, macros)
            place = end
        elif char in _PUNCTUATION:
            found.append(Word(char, file, line))
            place += 1
        else:
            end = max(_while(text, place, lambda one: one not in " \t\r\n{}<>,=!()#"), place + 1)
            found.append(Word(text[place:end], file, line))
            place = end
        _define(found, macros)
    return found


def _end_of_line(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end


def _while(text: str, place: int, wanted: Callable[[str], bool]) -> int:
    while place < len(text) and wanted(text[place]):
        place += 1
    return place


def _quoted(text: str, place: int, file: str, line: int) -> tuple[int, str]:
    quote, value, place = text[place], "", place + 1
    while place < len(text) and text[place] != quote:
        if text[place] == "\\" and text[place + 1 : place + 2] in (quote, " ", "\t", "\n"):
            place += 1
            if text[place] == "\n":
                place += 1
                continue
        if text[place] != "\n":
            value += text[place]
        place += 1
    if place >= len(text):
        raise Unreadable(file, line, "a quote is opened and not closed")
    return place + 1, value


def _macro(name: str, place: Word, before: list[Word], macros: dict[str, str]) -> list[Word]:
    if name not in macros:
        raise Unreadable(place.file, place.line, f"the macro ${name} is not defined")
    inside = _words(macros[name], place.file, dict(macros))
    return [Word(one.text, place.file, place.line, one.is_quoted) for one in inside if one.text != "\n"]


def _define(found: list[Word], macros: dict[str, str]) -> None:
    """NAME = VALUE as soon as both are read; a key of a table is not at the start of a line."""
    if len(found) >= 3 and found[-2].says("=") and (len(found) == 3 or found[-4].says("\n")):
        name, _, value = found[-3:]
        if not name.is_quoted and not value.says("\n", *_PUNCTUATION):
            # A quoted macro is put in as the text that it is: it may hold several words.
            macros[name.text] = value.text
            del found[-3:]


def _statements(words: list[Word]) -> list[Statement]:
    found: list[Statement] = []
    current: list[Word] = []
    depth = 0
    for word in words:
        depth += word.says("{") - word.says("}")
        if word.says("\n"):
            if depth <= 0 and current:
                found.append(tuple(current))
                current = []
        else:
            current.append(word)
    if depth > 0:
        raise Unreadable(current[0].file, current[0].line, "a brace is opened and not closed")
    return [*found, tuple(current)] if current else found
