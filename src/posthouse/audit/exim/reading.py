"""An Exim configuration as text: macros put in, conditionals and includes followed, each logical line with its place.

Main options, named lists, ACLs, routers and transports, by the order of the file (Exim's specification, chapter 6).
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

_DEEPEST = 16
_MACRO = re.compile(r"([A-Z][A-Za-z0-9_]*)\s*=(.*)", re.DOTALL)
_LIST = re.compile(r"(domainlist|hostlist|addresslist|localpartlist)(?:_cache)?\s+(\w+)(?:_cache)?\s*=(.*)", re.DOTALL)
_OPTION = re.compile(r"(?:hide\s+)?([a-z][a-z0-9_]*)\s*(?:=(.*))?", re.DOTALL)
_LABEL = re.compile(r"([A-Za-z0-9][\w.-]*)\s*:\s*")
_VERBS = ("accept", "defer", "deny", "discard", "drop", "require", "warn")
_VERB = re.compile(rf"({'|'.join(_VERBS)})\b\s*(.*)", re.DOTALL)


class Unclear(Exception):
    """The answer hangs on something that can't be judged here."""

    def __init__(self, place: "Place", words: str) -> None:
        super().__init__(f"{place.file}:{place.line}: {words}")
        self.place = place
        self.words = words


class Place(msgspec.Struct, frozen=True):
    """A line of a file."""

    file: str
    line: int


class Text(msgspec.Struct, frozen=True):
    """A logical line, or a value, and where it begins."""

    text: str
    place: Place


class Condition(msgspec.Struct, frozen=True):
    """One condition or modifier of an ACL statement: `name = value`."""

    name: str
    value: str
    place: Place
    is_negated: bool = False


class Statement(msgspec.Struct, frozen=True):
    """A verb with its conditions in order."""

    verb: str
    conditions: tuple[Condition, ...]
    place: Place


class Driver(msgspec.Struct, frozen=True):
    """A router or a transport: its options, by name."""

    name: str
    options: dict[str, Text]
    place: Place

    def get(self, name: str, default: str = "") -> str:
        """The text of an option."""
        found = self.options.get(name)
        return default if found is None else found.text

    def is_set(self, name: str, default: bool = False) -> bool:
        """A yes/no option, also written no_NAME, not_NAME or NAME = false."""
        if f"no_{name}" in self.options or f"not_{name}" in self.options:
            return False
        found = self.options.get(name)
        return default if found is None else found.text.strip().lower() not in ("false", "no")


class Configuration(msgspec.Struct, frozen=True):
    """What matters for relaying."""

    options: dict[str, Text]
    lists: dict[tuple[str, str], Text]
    acls: dict[str, tuple[Statement, ...]]
    routers: tuple[Driver, ...]
    transports: dict[str, Driver]


def read(path: Path) -> Configuration:
    """The configuration. Unclear where it can't be followed."""
    return _Builder(_Lines().read(path)).build()


class _Lines:
    """Logical lines with macros replaced, as Exim reads them."""

    def __init__(self) -> None:
        self.macros: dict[str, str] = {}
        self.in_main = True

    def read(self, path: Path) -> list[Text]:
        return list(self._file(path, 0))

    def _file(self, path: Path, depth: int) -> Iterator[Text]:
        try:
            lines = path.read_text(errors="surrogateescape").splitlines()
        except (OSError, ValueError) as error:
            raise Unclear(Place(str(path), 0), f"the file can't be read: {error}") from None
        skipping: list[bool] = []
        for text, line in _joined(lines):
            place = Place(str(path), line)
            if text.startswith("."):
                yield from self._directive(text, place, skipping, depth)
            elif not any(skipping):
                yield from self._line(text, place)

    def _directive(self, text: str, place: Place, skipping: list[bool], depth: int) -> Iterator[Text]:
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word in (".ifdef", ".ifndef"):
            skipping.append((word == ".ifdef") is not self._is_defined(rest))
        elif word in (".else", ".elifdef", ".elifndef") and skipping:
            if word == ".else":
                skipping[-1] = not skipping[-1]
            else:
                skipping[-1] = not skipping[-1] or (word == ".elifdef") is not self._is_defined(rest)
        elif word == ".endif" and skipping:
            skipping.pop()
        elif word in (".include", ".include_if_exists") and not any(skipping):
            yield from self._include(self._replace(rest), place, word == ".include_if_exists", depth)

    def _is_defined(self, text: str) -> bool:
        return any(name in text for name in self.macros)

    def _include(self, name: str, place: Place, may_miss: bool, depth: int) -> Iterator[Text]:
        path = Path(name.strip("\"' "))
        path = path if path.is_absolute() else Path(place.file).parent / path
        if depth >= _DEEPEST:
            raise Unclear(place, "files include one another without end")
        if path.is_dir():
            for one in sorted(path.glob("*.conf")):
                yield from self._file(one, depth + 1)
        elif path.exists() or not may_miss:
            yield from self._file(path, depth + 1)

    def _line(self, text: str, place: Place) -> Iterator[Text]:
        macro = _MACRO.fullmatch(text)
        if macro and (self.in_main or macro[1] in self.macros or macro[1].isupper()):
            self.macros[macro[1]] = self._replace(macro[2].lstrip("=").strip())
            return
        if text.startswith("begin "):
            self.in_main = False
        yield Text(self._replace(text), place)

    def _replace(self, text: str) -> str:
        for name in sorted(self.macros, key=len, reverse=True):
            text = text.replace(name, self.macros[name])
        return text


def _joined(lines: list[str]) -> Iterator[tuple[str, int]]:
    """Lines without comments, with those that end in a backslash joined; and the number of the first."""
    waiting, start = "", 0
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if line.startswith("#") or (not line and not waiting):
            continue
        start = start or number
        if line.endswith("\\"):
            waiting += line[:-1]
            continue
        if waiting + line:
            yield waiting + line, start
        waiting, start = "", 0
    if waiting:
        yield waiting, start


class _Builder:
    def __init__(self, lines: list[Text]) -> None:
        self.lines = lines
        self.options: dict[str, Text] = {}
        self.lists: dict[tuple[str, str], Text] = {}
        self.acls: dict[str, list[Statement]] = {}
        self.routers: list[Driver] = []
        self.transports: list[Driver] = []
        self.acl = ""
        self.section = "main"

    def build(self) -> Configuration:
        readers: dict[str, Callable[[Text], None]] = {
            "main": self._main,
            "acl": self._acl_line,
            "routers": lambda line: self._driver(line, self.routers),
            "transports": lambda line: self._driver(line, self.transports),
        }
        for line in self.lines:
            if line.text.startswith("begin "):
                self.section = line.text.split()[1]
            elif self.section in readers:
                readers[self.section](line)
        return Configuration(
            self.options,
            self.lists,
            {name: tuple(statements) for name, statements in self.acls.items()},
            tuple(self.routers),
            {driver.name: driver for driver in self.transports},
        )

    def _main(self, line: Text) -> None:
        named = _LIST.fullmatch(line.text)
        if named:
            self.lists[named[1], named[2]] = Text(unquote(named[3]), line.place)
            return
        option = _OPTION.fullmatch(line.text)
        if option:
            value = unquote(option[2]) if option[2] is not None else "true"
            name = option[1]
            if option[2] is None and name.startswith(("no_", "not_")):
                name, value = name.partition("_")[2], "false"
            self.options[name] = Text(value, line.place)

    def _acl_line(self, line: Text) -> None:
        label = _LABEL.fullmatch(line.text)
        if label:
            self.acl = label[1]
            self.acls[self.acl] = []
            return
        statements = self.acls.get(self.acl)
        if statements is None:
            raise Unclear(line.place, "an ACL statement stands before the first label")
        _add(line, statements)

    def _driver(self, line: Text, drivers: list[Driver]) -> None:
        label = _LABEL.fullmatch(line.text)
        if label:
            drivers.append(Driver(label[1], {}, line.place))
            return
        option = _OPTION.fullmatch(line.text)
        if option is None or not drivers:
            raise Unclear(line.place, f'"{line.text}" is not an option that is understood')
        value = unquote(option[2]) if option[2] is not None else "true"
        options = drivers[-1].options
        name = option[1]
        if name == "condition":  # several of them must all hold
            name = f"condition {sum(key.startswith('condition') for key in options)}"
        options[name] = Text(value, line.place)


def inline_acl(text: Text) -> tuple[Statement, ...] | None:
    """The statements of an ACL that is written where a name is wanted; None when it is a name after all."""
    lines = [line.strip() for line in text.text.split("\n") if line.strip()]
    if not lines or not _VERB.fullmatch(lines[0]):
        return None
    statements: list[Statement] = []
    for line in lines:
        _add(Text(line, text.place), statements)
    return tuple(statements)


def _add(line: Text, statements: list[Statement]) -> None:
    """A line of an ACL: a verb, conditions, or both."""
    rest = line.text
    verb = _VERB.fullmatch(rest)
    if verb:
        statements.append(Statement(verb[1], (), line.place))
        rest = verb[2]
    if rest.strip():
        if not statements:
            raise Unclear(line.place, f'"{rest.strip()[:60]}" stands where a verb such as accept or deny is wanted')
        last = statements.pop()
        condition = _condition(rest, line.place)
        statements.append(Statement(last.verb, (*last.conditions, condition), last.place))


def _condition(text: str, place: Place) -> Condition:
    """`! hosts = a : b`, `endpass`, `set acl_m0 = x`, `!verify = sender`."""
    bare = text.strip()
    is_negated = bare.startswith("!")
    bare = bare.removeprefix("!").strip()
    name, separator, value = bare.partition("=")
    if name.strip().startswith("set "):
        return Condition(name.strip(), unquote(value), place)
    if not separator or " " in name.strip():
        name, value = bare.split()[0], ""
    return Condition(name.strip(), value.strip(), place, is_negated)


def unquote(value: str) -> str:
    """A value without the quotes around it; escapes inside them are undone."""
    value = value.strip()
    if len(value) > 1 and value.startswith('"') and value.endswith('"'):
        return re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t"}.get(found[1], found[1]), value[1:-1])
    return value
