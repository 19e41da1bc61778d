"""Postfix's lists of domains and of hosts: exact names, parents, networks, tables, files and `!` (match_list(3)).

The first pattern that matches decides. `relay_domains` and `mynetworks` match subdomains; `mydestination` and the virtual
domains match whole names only.
"""

import itertools
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

import msgspec

from posthouse.audit.postfix.opening import Tables
from posthouse.audit.postfix.place import Hit, Place, Stop
from posthouse.audit.postfix.settings import Settings
from posthouse.audit.postfix.table import Found, Table
from posthouse.audit.postfix.text import split_list
from posthouse.policy.networks import Network, NetworkError, NetworkSet, parse_network

Form = Literal["string", "domain", "host"]
Where = Callable[[str], Place]
"""Tells the place of a token."""


class Pattern(msgspec.Struct, frozen=True):
    """One pattern of a list; `network` where it is one, `table` where it is one, `stop` where it can't be read."""

    text: str
    place: Place
    is_negated: bool = False
    table: Table | None = None
    network: Network | None = None
    stop: Stop | None = None


class Run(msgspec.Struct, frozen=True):
    """Patterns that stand together and mean the same (all negated or none): names and networks, or one of another kind."""

    names: dict[str, Pattern]
    networks: NetworkSet
    by_network: dict[Network, Pattern]
    single: Pattern | None = None


def _runs(patterns: tuple[Pattern, ...]) -> Iterator[Run]:
    for (is_plain, _), group in itertools.groupby(patterns, lambda one: (_is_plain(one), one.is_negated)):
        if not is_plain:
            yield from (Run({}, NetworkSet(()), {}, one) for one in group)
            continue
        names: dict[str, Pattern] = {}
        by_network: dict[Network, Pattern] = {}
        for one in group:
            if one.network is None:
                names.setdefault(one.text, one)
            else:
                by_network.setdefault(one.network, one)
        yield Run(names, NetworkSet(by_network), by_network)


def _is_plain(pattern: Pattern) -> bool:
    return pattern.table is None and pattern.stop is None


class MatchList:
    """One list of main.cf, by its parameter."""

    def __init__(self, name: str, form: Form, settings: Settings, tables: Tables) -> None:
        self._form = form
        self._with_parents = name in settings.items("parent_domain_matches_subdomains")
        self._tables = tables
        self.patterns = tuple(self._read(settings.items(name), lambda token: settings.place(name, token)))
        self._runs = tuple(_runs(self.patterns))

    def match_name(self, name: str) -> Found:
        """The pattern that a domain or host name matches."""
        return self._first(name.lower(), None)

    def match_host(self, name: str, address: str) -> Found:
        """The pattern that a client's name or address matches."""
        return self._first(name.lower(), address)

    def networks(self) -> list[tuple[Network, Place]]:
        """The networks and addresses that are listed and not negated."""
        return [(one.network, one.place) for one in self.patterns if one.network is not None and not one.is_negated]

    def _first(self, name: str, address: str | None) -> Found:
        for run in self._runs:
            found = self._in_run(run, name, address)
            if isinstance(found, Stop):
                return found
            if found is not None:
                return None if found.is_negated else Hit(found.text, found.place)
        return None

    def _in_run(self, run: Run, name: str, address: str | None) -> Pattern | Stop | None:
        """The pattern of a run that fits."""
        if run.single is not None:
            return self._single_fits(run.single, name, address)
        if name in run.names:
            return run.names[name]
        if self._form != "string":
            for part in parents(name, with_dots=not self._with_parents):
                if part != name and part in run.names:
                    return run.names[part]
        network = None if address is None else run.networks.match(_address(address))
        return None if network is None else run.by_network[network]

    def _single_fits(self, pattern: Pattern, name: str, address: str | None) -> Pattern | Stop | None:
        if pattern.stop is not None or pattern.table is None:
            return pattern.stop
        fits = self._table_has(pattern.table, name)
        if fits is False and address is not None:
            found = pattern.table.find(address)
            fits = found if isinstance(found, Stop) else found is not None
        return fits if isinstance(fits, Stop) else pattern if fits else None

    def _read(self, items: list[str], where: Where) -> Iterator[Pattern]:
        for item in items:
            bare = item.lstrip("!")
            negated = (len(item) - len(bare)) % 2 == 1
            place = where(item)
            if bare.startswith("/"):
                yield from self._included(bare, negated, place)
            elif ":" in bare and not bare.startswith("[") and not _is_address(bare):
                yield Pattern(bare, place, negated, table=self._tables.open(bare, place))
            elif self._form == "host" and ("/" in bare or _is_address(bare)):
                yield self._network(bare, negated, place)
            else:
                yield Pattern(bare.lower(), place, negated)

    def _included(self, name: str, negated: bool, place: Place) -> Iterator[Pattern]:
        """A file in the list stands for what it holds."""
        try:
            text, path = self._tables.lines(name)
        except OSError as error:
            stop = Stop(place, f"{name} cannot be read ({error.strerror}), so what it lists is not known")
            yield Pattern(name, place, negated, stop=stop)
            return
        for number, line in enumerate(text.splitlines(), 1):
            listed = Place(path, number)
            for one in self._read(split_list(line.partition("#")[0]), lambda _, at=listed: at):  # type: ignore[misc]
                yield msgspec.structs.replace(one, is_negated=one.is_negated != negated)

    def _network(self, text: str, negated: bool, place: Place) -> Pattern:
        try:
            return Pattern(text, place, negated, network=parse_network(text))
        except NetworkError as error:
            return Pattern(text, place, negated, stop=Stop(place, f"{error}; Postfix refuses the whole list"))

    def _table_has(self, table: Table, name: str) -> Stop | bool:
        for part in parents(name, with_dots=not self._with_parents) if self._form != "string" else [name]:
            if part == name or table.is_fixed:
                found = table.find(part)
                if found is not None:
                    return found if isinstance(found, Stop) else True
        return False


def parents(name: str, *, with_dots: bool) -> Iterator[str]:
    """The name and its parent domains, the top-level one included; with a leading dot where Postfix wants one."""
    yield name
    at = name.find(".", 1)
    while at >= 0:
        name = name[at:] if with_dots else name[at + 1 :]
        yield name
        at = name.find(".", 1)


def _address(text: str) -> IPv4Address | IPv6Address:
    return ip_address(text)


def _is_address(text: str) -> bool:
    try:
        ip_address(text.partition("/")[0])
    except ValueError:
        return False
    return True
