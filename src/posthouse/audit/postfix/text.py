"""Postfix's common file forms: logical lines (postconf(5)), and lists with braces (mystrtok(3))."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

_SEPARATORS = ", \t\r\n"


class Logical(msgspec.Struct, frozen=True):
    """A logical line: `text` joined of its physical `lines` (number, text)."""

    text: str
    lines: tuple[tuple[int, str], ...]

    @property
    def line(self) -> int:
        """The number of its first line."""
        return self.lines[0][0]

    def line_of(self, token: str, after: int = 0) -> int:
        """The first line from `after` on that holds the token; the first of all when none does."""
        for number, text in self.lines:
            if number >= after and token in text:
                return number
        return self.line


def read_text(path: Path) -> str:
    """A file as text: octets that are not UTF-8 survive as they are. OSError as usual."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def logical_lines(text: str) -> Iterator[Logical]:
    """Lines that begin with white space go on with the one before; blank and comment lines neither end nor belong to one."""
    gathered: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line[0].isspace() and gathered:
            yield _join(gathered)
            gathered = []
        gathered.append((number, line))
    if gathered:
        yield _join(gathered)


def _join(lines: list[tuple[int, str]]) -> Logical:
    return Logical("".join(text.rstrip("\r") for _, text in lines).strip(), tuple(lines))


def split_list(value: str, separators: str = _SEPARATORS) -> list[str]:
    """The items of a list: separated by commas and white space, a part in braces stays whole (braces kept)."""
    items, item, depth = [], "", 0
    for char in value:
        if char in separators and depth == 0:
            if item:
                items.append(item)
            item = ""
            continue
        depth += (char == "{") - (char == "}" and depth > 0)
        item += char
    return [*items, item] if item else items


def unbrace(item: str) -> str:
    """`{ text }` without its braces and the white space inside them; other text as it is."""
    return item[1:-1].strip() if item.startswith("{") and item.endswith("}") else item
