"""Tables whose lines are tried in order: cidr, regexp and pcre, with `!`, `if` and `endif`."""

import re
from collections.abc import Iterable

import msgspec

from posthouse.audit.postfix.place import Hit, Place
from posthouse.audit.postfix.text import logical_lines

_PATTERN = re.compile(r"^(!?)\s*(.)")


class Rule(msgspec.Struct, frozen=True):
    """One line: it counts where all of `within` (the `if`s around it, negated or not) and `pattern` do."""

    pattern: str
    is_negated: bool
    hit: Hit
    within: tuple[tuple[str, bool], ...] = ()


class RuleError(ValueError):
    """A line can't be understood; the message has its number."""


def lines_of(text: str, file: str) -> list[tuple[str, Place]]:
    """The logical lines of a table file with their places."""
    return [(logical.text, Place(file, logical.line)) for logical in logical_lines(text)]


def read_rules(lines: Iterable[tuple[str, Place]], *, are_patterns: bool) -> list[Rule]:
    """The rules of a table. RuleError for a line that is none."""
    rules: list[Rule] = []
    within: list[tuple[str, bool]] = []
    for line, place in lines:
        if re.match(r"endif\b", line, re.IGNORECASE):
            if within:
                within.pop()
            continue
        is_if = re.match(r"if\s+", line, re.IGNORECASE)
        pattern, negated, value = _split(line[is_if.end() :] if is_if else line, place, are_patterns=are_patterns)
        if is_if:
            within.append((pattern, negated))
        else:
            rules.append(Rule(pattern, negated, Hit(value, place), tuple(within)))
    return rules


def _split(line: str, place: Place, *, are_patterns: bool) -> tuple[str, bool, str]:
    """Pattern (with its delimiters and flags), whether negated, and the value."""
    start = _PATTERN.match(line)
    if start is None:
        raise RuleError(f'{place}: "{line}" is no rule')
    negated, at = bool(start[1]), start.start(2)
    if not are_patterns:
        fields = line[at:].split(None, 1)
        pattern, value = fields[0], fields[1] if len(fields) > 1 else ""
        return pattern, negated, value.strip()
    delimiter = line[at]
    end = at + 1
    while end < len(line) and line[end] != delimiter:
        end += 2 if line[end] == "\\" else 1
    if end >= len(line):
        raise RuleError(f"{place}: the pattern lacks its closing {delimiter}")
    stop = end + 1
    while stop < len(line) and not line[stop].isspace():
        stop += 1
    return line[at:stop], negated, line[stop:].strip()
