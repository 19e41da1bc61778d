"""Look-up tables (DATABASE_README, postfix's tables(5)): opened from "type:name", asked for keys, listed for a stranger's choice.

A table of a server (SQL, LDAP, a socket) and whatever can't be read answers every key with a Stop: it may hold anything.
"""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec

from posthouse.audit.postfix.pattern import PatternError, compile_pattern, samples
from posthouse.audit.postfix.place import Hit, Place, Stop
from posthouse.audit.postfix.rules import Rule
from posthouse.policy.networks import Network, NetworkError, parse_network

_GROUP = re.compile(r"\$\$|\$(\d+)|\$\{(\d+)\}|\$\((\d+)\)")

Found = Hit | Stop | None


class Entry(msgspec.Struct, frozen=True):
    """One entry: `keys` are strings that find it (its key, or samples of its pattern); `network` for cidr tables."""

    keys: tuple[str, ...]
    hit: Hit
    network: Network | None = None


class Table:
    """A table by its `spec`. `is_fixed`: parts of names are looked up too (not so with patterns)."""

    is_fixed = True

    def __init__(self, spec: str, place: Place) -> None:
        self.spec = spec
        self.place = place

    def find(self, key: str) -> Found:
        """What the key finds."""
        raise NotImplementedError

    def entries(self) -> Sequence[Entry]:
        """All that it holds, as far as it can be listed."""
        return ()


class Sealed(Table):
    """A table that can't be read here: any key may find anything."""

    def __init__(self, spec: str, stop: Stop) -> None:
        super().__init__(spec, stop.place)
        self.stop = stop

    def find(self, key: str) -> Found:
        """Always the reason why nothing is known."""
        return self.stop


class Plain(Table):
    """Keys and values: the indexed kinds, texthash and inline."""

    def __init__(self, spec: str, place: Place, pairs: Iterable[tuple[str, Hit]]) -> None:
        super().__init__(spec, place)
        self._held: dict[str, Hit] = {}
        for key, hit in pairs:
            self._held.setdefault(key.lower(), hit)

    def find(self, key: str) -> Found:
        """Case doesn't count."""
        return self._held.get(key.lower())

    def entries(self) -> Sequence[Entry]:
        """Each key with its value."""
        return [Entry((key,), hit) for key, hit in self._held.items()]


class Static(Table):
    """static:value, found under every key."""

    is_fixed = False

    def __init__(self, spec: str, place: Place, value: str) -> None:
        super().__init__(spec, place)
        self._hit = Hit(value, place)

    def find(self, key: str) -> Found:
        """The value."""
        return self._hit


class Cidr(Table):
    """Networks in order (cidr_table(5))."""

    is_fixed = False

    def __init__(self, spec: str, place: Place, rules: Sequence[Rule]) -> None:
        super().__init__(spec, place)
        self._rules = rules
        self._found: dict[str, Found] = {}
        self._networks: dict[str, Network | None] = {}
        for rule in rules:
            for pattern in (*(name for name, _ in rule.within), rule.pattern):
                self._networks[pattern] = _network(pattern)

    def find(self, key: str) -> Found:
        """The first network that holds the address; a key that is no address finds nothing."""
        if key not in self._found:
            try:
                self._found[key] = self._search(ip_address(key))
            except ValueError:
                self._found[key] = None
        return self._found[key]

    def _search(self, address: IPv4Address | IPv6Address) -> Found:
        for rule in self._rules:
            network = self._networks[rule.pattern]
            if network is None:
                return Stop(rule.hit.place, f'"{rule.pattern}" is no network; Postfix skips the line with a warning')
            if (address in network) != rule.is_negated and all(self._is_within(one, address) for one in rule.within):
                return rule.hit
        return None

    def _is_within(self, condition: tuple[str, bool], address: IPv4Address | IPv6Address) -> bool:
        network = self._networks[condition[0]]
        return network is not None and (address in network) != condition[1]

    def entries(self) -> Sequence[Entry]:
        """Each network, without conditions around it."""
        return [
            Entry((str(network.network_address),), rule.hit, network)
            for rule in self._rules
            if (network := self._networks[rule.pattern]) is not None and not rule.is_negated
        ]


class Regexp(Table):
    """Patterns in order (regexp_table(5), pcre_table(5))."""

    is_fixed = False

    def __init__(self, spec: str, place: Place, rules: Sequence[Rule]) -> None:
        super().__init__(spec, place)
        self._rules = rules
        self._is_pcre = spec.startswith("pcre")
        self._found: dict[str, Found] = {}

    def find(self, key: str) -> Found:
        """The first pattern that matches, $1 and its like filled in."""
        if key not in self._found:
            self._found[key] = self._search(key)
        return self._found[key]

    def _search(self, key: str) -> Found:
        for rule in self._rules:
            try:
                if not all(self._matches(pattern, key) != negated for pattern, negated in rule.within):
                    continue
                matched = self._match(rule.pattern, key)
            except PatternError as error:
                return Stop(rule.hit.place, f"{error}, so it is not known what {key} finds in {self.spec}")
            if rule.is_negated:
                if matched is None:
                    return rule.hit
            elif matched is not None:
                return Hit(_fill(rule.hit.value, matched), rule.hit.place)
        return None

    def entries(self) -> Sequence[Entry]:
        """Each pattern with strings that it matches."""
        found = []
        for rule in self._rules:
            keys: list[str] = []
            if not rule.is_negated:
                try:
                    keys = samples(self._compiled(rule.pattern))
                except PatternError:
                    keys = []
            found.append(Entry(tuple(keys), rule.hit))
        return found

    def _matches(self, pattern: str, key: str) -> bool:
        return self._match(pattern, key) is not None

    def _match(self, pattern: str, key: str) -> tuple[str, ...] | None:
        matched = self._compiled(pattern).search(key)
        return None if matched is None else (matched.group(), *(group or "" for group in matched.groups()))

    def _compiled(self, pattern: str) -> re.Pattern[str]:
        return _compile(pattern, is_pcre=self._is_pcre)


class Union(Table):
    """unionmap:{a,b}: the values of all that find the key, joined."""

    is_fixed = False

    def __init__(self, spec: str, place: Place, tables: Sequence[Table]) -> None:
        super().__init__(spec, place)
        self._tables = tables
        self.is_fixed = all(table.is_fixed for table in tables)

    def find(self, key: str) -> Found:
        """One Stop stops all."""
        found = [table.find(key) for table in self._tables]
        hits = []
        for one in found:
            if isinstance(one, Stop):
                return one
            if one is not None:
                hits.append(one)
        return Hit(",".join(hit.value for hit in hits), hits[0].place) if hits else None

    def entries(self) -> Sequence[Entry]:
        """Those of all."""
        return [entry for table in self._tables for entry in table.entries()]


class Pipe(Table):
    """pipemap:{a,b}: what the first finds is the key of the next."""

    def __init__(self, spec: str, place: Place, tables: Sequence[Table]) -> None:
        super().__init__(spec, place)
        self._tables = tables
        self.is_fixed = all(table.is_fixed for table in tables)

    def find(self, key: str) -> Found:
        """Nothing as soon as one of them finds nothing."""
        found: Found = None
        for table in self._tables:
            found = table.find(key)
            if not isinstance(found, Hit):
                return found
            key = found.value
        return found

    def entries(self) -> Sequence[Entry]:
        """Keys of the first."""
        return self._tables[0].entries() if self._tables else ()


_compiled_patterns: dict[tuple[str, bool], re.Pattern[str]] = {}


def _compile(pattern: str, *, is_pcre: bool) -> re.Pattern[str]:
    """A pattern with its delimiters and flags. PatternError when unreadable."""
    key = (pattern, is_pcre)
    if key not in _compiled_patterns:
        end = pattern.rindex(pattern[0])
        _compiled_patterns[key] = compile_pattern(pattern[1:end], pattern[end + 1 :], is_pcre=is_pcre)
    return _compiled_patterns[key]


def _fill(value: str, groups: tuple[str, ...]) -> str:
    def group(found: re.Match[str]) -> str:
        if found.group() == "$$":
            return "$"
        number = int(next(part for part in found.groups() if part))
        return groups[number] if number < len(groups) else ""

    return _GROUP.sub(group, value)


def _network(pattern: str) -> Network | None:
    try:
        return parse_network(pattern)
    except NetworkError:
        return None
