"""Regular expressions of regexp and pcre tables: read by Python's `re`, and strings that they match.

POSIX and PCRE are close enough to `re` for the patterns that people write in access tables; what isn't (recursion,
possessive forms that `re` refuses, \\Q..\\E) is told as unreadable and never guessed at.
"""

import re
from re import _constants as kinds  # type: ignore[attr-defined]  # the parse tree has no public form
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

FILLER = "strangerland"
"""What stands wherever a pattern leaves the choice; a domain that holds it is a stranger's to own."""

_FILLERS = ((f"{FILLER}.example", FILLER), (FILLER,))

_POSIX = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r"\s",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "xdigit": "0-9A-Fa-f",
    "print": r"\x20-\x7e",
    "graph": r"\x21-\x7e",
    "cntrl": r"\x00-\x1f\x7f",
    "word": r"\w",
}
_CLASS = re.compile(r"\[:(\w+):\]")
_CHOICES = 'strangelid0123456789-._+=ABCDEFGHIJKLMNOPQRSTUVWXYZbcfhjkmopquvwxyz@!%:#/ []"<>'


class PatternError(ValueError):
    """`re` can't read the pattern; the message says why."""


def compile_pattern(pattern: str, flags: str, *, is_pcre: bool) -> re.Pattern[str]:
    """The pattern with the table's flags. Case counts only with `i`, as Postfix has it. PatternError when unreadable."""
    if is_pcre and (r"\Q" in pattern or "(?R)" in pattern or "(*" in pattern):
        raise PatternError(f"the pattern {pattern} uses what only PCRE knows")
    options = 0 if "i" in flags else re.IGNORECASE
    if is_pcre:
        options |= re.DOTALL if "s" not in flags else 0
        options |= re.MULTILINE if "m" in flags else 0
        options |= re.VERBOSE if "x" in flags else 0
    else:
        options |= re.DOTALL | (re.MULTILINE if "m" in flags else 0)
    text = _CLASS.sub(lambda found: _POSIX.get(found[1], found[0]), pattern)
    if is_pcre:
        text = text.replace(r"\z", r"\Z").replace(r"\h", r"[ \t]")
        if "A" in flags:
            text = f"^(?:{text})"
    try:
        return re.compile(text, options)
    except (re.error, RecursionError, OverflowError) as error:
        raise PatternError(f"the pattern {pattern} can't be read here ({error})") from None


def samples(pattern: re.Pattern[str]) -> list[str]:
    """Strings that the pattern finds, FILLER wherever it leaves the choice; none when none was hit upon."""
    found = []
    for fillers in _FILLERS:
        try:
            made = _Maker(fillers).sequence(parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE))
        except (re.error, RecursionError, ValueError):
            continue
        if pattern.search(made) and made not in found:
            found.append(made)
    return found


class _Maker:
    """Walks a parsed pattern and writes what it asks for."""

    def __init__(self, fillers: tuple[str, ...]) -> None:
        self._fillers = fillers
        self._groups: dict[int, str] = {}

    def sequence(self, items: Any) -> str:
        return "".join(self._item(kind, argument) for kind, argument in items)

    def _item(self, kind: Any, argument: Any) -> str:
        if kind is kinds.LITERAL:
            return chr(argument)
        if kind in (kinds.ANY, kinds.IN, kinds.NOT_LITERAL, kinds.CATEGORY):
            return self._one_of(kind, argument)
        if kind in (kinds.MAX_REPEAT, kinds.MIN_REPEAT, getattr(kinds, "POSSESSIVE_REPEAT", None)):
            return self._repeat(argument)
        if kind is kinds.SUBPATTERN:
            made = self.sequence(argument[3])
            self._groups[argument[0] or 0] = made
            return made
        if kind is kinds.BRANCH:
            return self.sequence(argument[1][0])
        if kind is kinds.GROUPREF:
            return self._groups.get(argument, "")
        return self.sequence(argument) if kind is getattr(kinds, "ATOMIC_GROUP", None) else ""

    def _repeat(self, argument: Any) -> str:
        low, high, items = argument
        inner = list(items)
        if len(inner) == 1 and inner[0][0] in (kinds.ANY, kinds.IN, kinds.NOT_LITERAL):
            kind, what = inner[0]
            for filler in self._fillers:
                if low <= len(filler) <= high and all(self._accepts(kind, what, char) for char in filler):
                    return filler
            return self._one_of(kind, what) * max(int(low), 1 if high >= 1 else 0)
        return self.sequence(items) * int(low)

    def _one_of(self, kind: Any, argument: Any) -> str:
        for char in _CHOICES:
            if self._accepts(kind, argument, char):
                return char
        raise ValueError("no plain character fits")

    def _accepts(self, kind: Any, argument: Any, char: str) -> bool:
        if kind is kinds.ANY:
            return True
        if kind is kinds.NOT_LITERAL:
            return char != chr(argument)
        if kind is kinds.CATEGORY:
            return _in_category(argument, char)
        negated, accepted = False, False
        for inner, value in argument:
            if inner is kinds.NEGATE:
                negated = True
            elif inner is kinds.LITERAL:
                accepted |= char == chr(value)
            elif inner is kinds.RANGE:
                accepted |= value[0] <= ord(char) <= value[1]
            elif inner is kinds.CATEGORY:
                accepted |= _in_category(value, char)
        return accepted != negated


def _in_category(category: Any, char: str) -> bool:
    name = str(category)
    inside = {"DIGIT": char.isdigit(), "SPACE": char.isspace(), "WORD": char.isalnum() or char == "_"}
    for key, truth in inside.items():
        if name.endswith(key):
            return truth != ("NOT" in name)
    return False
