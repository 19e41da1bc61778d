"""$name in Postfix's parameters, as mac_expand(3) fills it in: conditions, comparisons and all.

`$name`, `${name}`, `$(name)`, `${name?yes}`, `${name:no}`, `${name?{yes}:{no}}`, `${{left} == {right}?{yes}:{no}}`, with
`<level` and its kin comparing compatibility levels part by part; `$$` is a dollar sign.
"""

import re
from collections.abc import Callable

_NAME = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"\s*(==|!=|<=|>=|<|>)(level)?\s*")
_DEEPEST = 60
_CLOSING = {"{": "}", "(": ")"}


class ExpandError(ValueError):
    """The text is no proper expression; the message says where."""


def expand(text: str, look_up: Callable[[str], str | None], depth: int = 0) -> str:
    """The text with all names filled in, recursively; names that are not there stand for nothing. ExpandError when malformed."""
    if depth > _DEEPEST:
        raise ExpandError("a parameter refers to itself")
    out, at = "", 0
    while at < len(text):
        dollar = text.find("$", at)
        if dollar < 0:
            return out + text[at:]
        out += text[at:dollar]
        part, at = _expression(text, dollar + 1, look_up, depth)
        out += part
    return out


def _expression(text: str, at: int, look_up: Callable[[str], str | None], depth: int) -> tuple[str, int]:
    opening = text[at : at + 1]
    if opening == "$":
        return "$", at + 1
    if opening in _CLOSING and opening:
        end = _matching(text, at)
        return _inside(text[at + 1 : end].strip(), look_up, depth + 1), end + 1
    name = _NAME.match(text, at)
    if name is None:
        raise ExpandError(f'"{text[at - 1 : at + 12]}" is no parameter name')
    return expand(look_up(name.group()) or "", look_up, depth + 1), name.end()


def _matching(text: str, at: int) -> int:
    opening, depth = text[at], 0
    for end in range(at, len(text)):
        depth += (text[end] == opening) - (text[end] == _CLOSING[opening])
        if depth == 0:
            return end
    raise ExpandError(f'"{text[at : at + 12]}" lacks its closing {_CLOSING[opening]}')


def _inside(body: str, look_up: Callable[[str], str | None], depth: int) -> str:
    if body.startswith("{"):
        end = _matching(body, 0)
        left = expand(body[1:end].strip(), look_up, depth)
        operator = _OPERATOR.match(body, end + 1)
        if operator is None or not body.startswith("{", operator.end()):
            raise ExpandError(f'"{body}" is no comparison')
        stop = _matching(body, operator.end())
        right = expand(body[operator.end() + 1 : stop].strip(), look_up, depth)
        truth = _compare(left, operator.group(1), right, by_level=bool(operator.group(2)))
        return _choose(body[stop + 1 :].strip(), truth, "bool:true" if truth else "", look_up, depth)
    name = _NAME.match(body)
    if name is None:
        raise ExpandError(f'"{body}" is no parameter name')
    rest = body[name.end() :].strip()
    operator = _OPERATOR.match(rest)  # ${name == {right}?...}
    value = expand(look_up(name.group()) or "", look_up, depth)
    if operator is not None and rest.startswith("{", operator.end()):
        stop = _matching(rest, operator.end())
        right = expand(rest[operator.end() + 1 : stop].strip(), look_up, depth)
        truth = _compare(value, operator.group(1), right, by_level=bool(operator.group(2)))
        return _choose(rest[stop + 1 :].strip(), truth, "bool:true" if truth else "", look_up, depth)
    return _choose(rest, bool(value), value, look_up, depth)


def _choose(rest: str, truth: bool, value: str, look_up: Callable[[str], str | None], depth: int) -> str:
    """What `?yes:no` behind a name or a comparison gives; without it the value itself."""
    if not rest:
        return value
    if rest.startswith(":"):
        return "" if truth else expand(_branch(rest[1:])[0], look_up, depth)
    if not rest.startswith("?"):
        raise ExpandError(f'"{rest}" is neither ?text nor :text')
    yes, after = _branch(rest[1:])
    if truth:
        return expand(yes, look_up, depth)
    return expand(_branch(after[1:])[0], look_up, depth) if after.startswith(":") else ""


def _branch(text: str) -> tuple[str, str]:
    """One branch, and what stands behind it: `{text}` ends with its brace, bare text goes on to the end."""
    stripped = text.lstrip()
    if not stripped.startswith("{"):
        return text, ""
    end = _matching(stripped, 0)
    return stripped[1:end].strip(), stripped[end + 1 :].lstrip()


def _compare(left: str, operator: str, right: str, *, by_level: bool) -> bool:
    a: object = left
    b: object = right
    order = 0
    if by_level:
        one, two = _level(left), _level(right)
        order = (one > two) - (one < two)
    elif left.isdigit() and right.isdigit():
        order = (int(left) > int(right)) - (int(left) < int(right))
    else:
        order = (str(a) > str(b)) - (str(a) < str(b))
    return {
        "==": order == 0,
        "!=": order != 0,
        "<": order < 0,
        "<=": order <= 0,
        ">": order > 0,
        ">=": order >= 0,
    }[operator]


def _level(text: str) -> tuple[int, int, int]:
    parts = text.strip().split(".")
    if not all(part.isdigit() for part in parts) or len(parts) > 3:
        raise ExpandError(f'"{text}" is no compatibility level')
    numbers = [int(part) for part in parts] + [0, 0]
    return numbers[0], numbers[1], numbers[2]
