"""What smtpd.conf says about relaying: listeners' tags, tables, actions and the match rules in their order. Values only."""

import enum
from itertools import pairwise
from pathlib import Path

import msgspec

from posthouse.audit.opensmtpd.lines import Statement, Unreadable, Word


class Property(enum.StrEnum):
    """What a match rule can ask of a mail."""

    TAG = "tag"
    SOURCE = "from src"
    SOCKET = "from socket"
    NAME = "from rdns"
    HELLO = "helo"
    LOGIN = "auth"
    TLS = "tls"
    REVERSE_PATH = "mail-from"
    DOMAIN = "for domain"
    FORWARD_PATH = "rcpt-to"


class Table(msgspec.Struct, frozen=True):
    """A table's keys, without their values. `why_unknown` is not empty when they can't be read here."""

    name: str
    keys: tuple[str, ...] = ()
    why_unknown: str = ""


class Ask(msgspec.Struct, frozen=True):
    """One question of a rule. `table` is None where the property alone counts (`auth`, `from rdns`, `tls`)."""

    property: Property
    word: Word
    table: Table | None = None
    is_regex: bool = False
    is_negated: bool = False


class Rule(msgspec.Struct, frozen=True):
    """One match rule: everything asked must hold. `action` is "" for reject."""

    word: Word
    asks: tuple[Ask, ...]
    action: str


class Action(msgspec.Struct, frozen=True):
    """Where a match leads: `is_relay`, or a delivery on this machine."""

    name: str
    is_relay: bool


class Listener(msgspec.Struct, frozen=True):
    """A listener for the network: what it is tagged with, and whether a PROXY header is believed."""

    word: Word
    tag: str = ""
    is_proxied: bool = False
    filters: str = ""


class Configuration(msgspec.Struct, frozen=True):
    """What matters for relaying."""

    listeners: tuple[Listener, ...]
    actions: dict[str, Action]
    rules: tuple[Rule, ...]
    filter_programs: tuple[Word, ...] = ()


LOCAL_HOST = Table("<localhost>", ("local", "127.0.0.1", "::1"))
"""`from local`: smtpd adds every address of the machine's interfaces, none of which is a stranger's."""
ANY_HOST = Table("<anyhost>", ("local", "0.0.0.0/0", "::/0"))
ANY_DOMAIN = Table("<anydestination>", ("*",))
LOCAL_NAMES = Table("<localnames>", ("localhost",))
"""`for local`: smtpd adds the machine's own name, which is no third party's."""
_OLD_SYNTAX = ("accept", "reject", "deliver")


def read(statements: list[Statement], directory: Path) -> Configuration:
    """The configuration. Unreadable for a rule or table that can't be understood."""
    return _Builder(directory).build(statements)


class _Builder:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tables: dict[str, Table] = {}
        self.listeners: list[Listener] = []
        self.actions: dict[str, Action] = {}
        self.rules: list[Rule] = []
        self.programs: list[Word] = []

    def build(self, statements: list[Statement]) -> Configuration:
        for words in statements:
            first = words[0]
            if first.says("table"):
                self._table(words)
            elif first.says("listen"):
                self._listen(words)
            elif first.says("action"):
                self._action(words)
            elif first.says("match"):
                self.rules.append(_RuleReader(self, words).rule())
            elif first.says(*_OLD_SYNTAX):
                raise Unreadable(
                    first.file, first.line, f'"{first.text}" is the language before OpenSMTPD 6.4; convert the file'
                )
            elif first.says("filter") and any(word.says("proc", "proc-exec", "rewrite") for word in words):
                self.programs.append(first)
        return Configuration(
            tuple(self.listeners), self.actions, tuple(self.rules), filter_programs=tuple(self.programs)
        )

    def _table(self, words: Statement) -> None:
        if len(words) < 3:
            raise Unreadable(words[0].file, words[0].line, "a table without a name or a content")
        name = words[1].text
        if words[2].says("{"):
            self.tables[name] = Table(name, _keys(words[3:]))
        else:
            self.tables[name] = self._stored(name, "".join(word.text for word in words[2:]))

    def _stored(self, name: str, where: str) -> Table:
        kind, separator, place = where.partition(":")
        if not separator:
            kind, place = "file", where
        if kind not in ("file", "static"):
            return Table(name, why_unknown=f"it is looked up through {kind}, which isn't asked here")
        path = Path(place) if place.startswith("/") else self.directory / place
        try:
            text = path.read_text(errors="surrogateescape")
        except (OSError, ValueError) as error:
            return Table(name, why_unknown=f"{path} can't be read: {error}")
        lines = (line.strip() for line in text.splitlines())
        # Aliases are "key: value", others "key value"; a list has keys alone.
        return Table(name, tuple(line.split()[0].rstrip(":") for line in lines if line and not line.startswith("#")))

    def _listen(self, words: Statement) -> None:
        if any(word.says("socket") for word in words[:3]):
            return
        tag = filters = ""
        for word, after in pairwise(words):
            tag = after.text if word.says("tag") else tag
            filters = after.text if word.says("filter") else filters
        is_proxied = any(word.says("proxy-v2") for word in words)
        self.listeners.append(Listener(words[0], tag, is_proxied, filters))

    def _action(self, words: Statement) -> None:
        if len(words) < 3:
            raise Unreadable(words[0].file, words[0].line, "an action without a name or a kind")
        self.actions[words[1].text] = Action(words[1].text, words[2].says("relay"))


def _keys(words: Statement) -> tuple[str, ...]:
    """Keys of "{ a, b }" and of "{ a = x, b = y }"."""
    keys: list[str] = []
    is_value = False
    for word in words:
        if word.says("="):
            is_value = True
        elif word.says(",", "}"):
            is_value = False
        elif not is_value:
            keys.append(word.text)
    return tuple(keys)


class _RuleReader:
    """Reads one `match` rule word by word."""

    def __init__(self, builder: _Builder, words: Statement) -> None:
        self.builder = builder
        self.words = words
        self.at = 1
        self.asks: list[Ask] = []
        self.has_from = self.has_for = False

    def rule(self) -> Rule:
        while self.at < len(self.words):
            word = self._next()
            if word.says("reject"):
                return self._whole("")
            if word.says("action"):
                name = self._next()
                if name.text not in self.builder.actions:
                    raise Unreadable(name.file, name.line, f'the action "{name.text}" is not defined above')
                return self._whole(name.text)
            is_negated = word.says("!")
            self._option(self._next() if is_negated else word, is_negated)
        raise Unreadable(self.words[0].file, self.words[0].line, "a match without an action")

    def _whole(self, action: str) -> Rule:
        """A rule that does not say where from means from here; one that does not say where to means to here."""
        if not self.has_from:
            self.asks.append(Ask(Property.SOURCE, self.words[0], LOCAL_HOST))
        if not self.has_for:
            self.asks.append(Ask(Property.DOMAIN, self.words[0], LOCAL_NAMES))
        return Rule(self.words[0], tuple(self.asks), action)

    def _next(self) -> Word:
        if self.at >= len(self.words):
            raise Unreadable(self.words[-1].file, self.words[-1].line, "the rule ends too early")
        self.at += 1
        return self.words[self.at - 1]

    def _option(self, word: Word, is_negated: bool) -> None:
        plain = {
            "tag": Property.TAG,
            "tagged": Property.TAG,
            "helo": Property.HELLO,
            "mail-from": Property.REVERSE_PATH,
        }
        if word.says("from"):
            self.has_from = True
            self._from(self._next(), is_negated)
        elif word.says("for"):
            self.has_for = True
            self._for(self._next(), is_negated)
        elif word.says("auth"):
            self._ask(Property.LOGIN, word, is_negated, needs_table=False)
        elif word.says("tls"):
            self.asks.append(Ask(Property.TLS, word, is_negated=is_negated))
        elif word.says("rcpt-to"):
            self._ask(Property.FORWARD_PATH, word, is_negated)
        elif word.says(*plain):
            self._ask(plain[word.text], word, is_negated)
        else:
            raise Unreadable(word.file, word.line, f'"{word.text}" is no option of match that is known here')

    def _from(self, word: Word, is_negated: bool) -> None:
        if word.says("any", "local"):
            table = ANY_HOST if word.text == "any" else LOCAL_HOST
            self.asks.append(Ask(Property.SOURCE, word, table, is_negated=is_negated))
        elif word.says("socket"):
            self.asks.append(Ask(Property.SOCKET, word, is_negated=is_negated))
        elif word.says("src"):
            self._ask(Property.SOURCE, word, is_negated)
        elif word.says("rdns"):
            self._ask(Property.NAME, word, is_negated, needs_table=False)
        elif word.says("auth"):
            self._ask(Property.LOGIN, word, is_negated, needs_table=False)
        elif word.says("mail-from"):
            self._ask(Property.REVERSE_PATH, word, is_negated)
        else:
            raise Unreadable(word.file, word.line, f'"from {word.text}" is not known here')

    def _for(self, word: Word, is_negated: bool) -> None:
        if word.says("any", "local"):
            table = ANY_DOMAIN if word.text == "any" else LOCAL_NAMES
            self.asks.append(Ask(Property.DOMAIN, word, table, is_negated=is_negated))
        elif word.says("domain"):
            self._ask(Property.DOMAIN, word, is_negated)
        elif word.says("rcpt-to"):
            self._ask(Property.FORWARD_PATH, word, is_negated)
        else:
            raise Unreadable(word.file, word.line, f'"for {word.text}" is not known here')

    def _ask(self, of: Property, word: Word, is_negated: bool, *, needs_table: bool = True) -> None:
        is_regex = self._peek("regex")
        self.at += is_regex
        table = self._tables(needs_table or is_regex)
        self.asks.append(Ask(of, word, table, is_regex, is_negated))

    def _peek(self, *words: str) -> bool:
        return self.at < len(self.words) and self.words[self.at].says(*words)

    def _tables(self, is_needed: bool) -> Table | None:
        """A table by name in brackets, one written in place, or a single string."""
        if self._peek("<"):
            self._next()
            name = self._next()
            self._next()
            table = self.builder.tables.get(name.text)
            if table is None:
                raise Unreadable(name.file, name.line, f"the table <{name.text}> is not defined above")
            return table
        if self._peek("{"):
            start = self.at
            while not self._peek("}"):
                self._next()
            self._next()
            return Table("{...}", _keys(self.words[start + 1 : self.at]))
        if is_needed or (self.at < len(self.words) and self._is_string()):
            return Table("", (self._next().text,))
        return None

    def _is_string(self) -> bool:
        known = ("!", "action", "auth", "for", "from", "helo", "mail-from", "rcpt-to", "reject", "tag", "tagged", "tls")
        return not self._peek(*known)
