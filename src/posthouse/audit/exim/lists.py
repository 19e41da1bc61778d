"""Exim's lists of domains, hosts, addresses and local parts (specification, chapter 10), asked about one stranger.

Items are tried in order; the first that matches decides. After a list without a match the answer is no, unless its last
item was negated. An item that can't be judged is Unclear only when the list comes to it.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from posthouse.audit.crowd import try_network
from posthouse.audit.exim.expansion import Chosen, Expander, Failed, search_file
from posthouse.audit.exim.reading import Configuration, Place, Unclear
from posthouse.audit.exim.session import Session, Truth, truth
from posthouse.policy.networks import Network

_LOOKUP = re.compile(
    r"(?:(partial)(?:\d*)(?:\([^)]*\))?-)?(net\d*-)?(lsearch|wildlsearch|nwildlsearch|iplsearch|\w+)(\*@?)?;\s*(.*)",
    re.DOTALL,
)
_FILES = ("lsearch", "wildlsearch", "nwildlsearch", "iplsearch")
_DEEPEST = 16
_Match = Callable[["Lists", str, str, Session, Place], Truth]


class Lists:
    """Matches values against lists, named lists and files of items."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.expander = Expander(configuration, self.match)

    def match(self, kind: str, text: str, value: str, session: Session, place: Place, depth: int = 0) -> Truth:
        """Whether the value is in the list. Unclear as above."""
        if depth > _DEEPEST:
            raise Unclear(place, "lists name one another without end")
        if not text.strip():
            return Truth.NO
        try:
            expanded = self.expander.expand(text, session, place)
        except Failed:
            return Truth.NO
        except Chosen:
            return Truth.CHOICE
        is_negated = False
        for item in items(expanded):
            is_negated = item.startswith("!")
            bare = item.removeprefix("!").strip()
            held = self._item(kind, bare, value, session, place, depth)
            if held is Truth.CHOICE:
                return held
            if held is Truth.YES:
                return truth(not is_negated)
        return truth(is_negated)

    def _item(self, kind: str, item: str, value: str, session: Session, place: Place, depth: int) -> Truth:
        if item.startswith("+"):
            return self._named(kind, item[1:], value, session, place, depth)
        if item.startswith("/") and not item.startswith("/^"):
            return self._file(kind, item, value, session, place, depth)
        if item == "*":
            return Truth.YES
        return _MATCHES[kind](self, item, value, session, place)

    def _named(self, kind: str, name: str, value: str, session: Session, place: Place, depth: int) -> Truth:
        if name in ("include_unknown", "ignore_unknown", "include_defer", "ignore_defer", "caseful"):
            return Truth.NO
        found = self.configuration.lists.get((kind, name))
        if found is None and kind == "addresslist":  # a domain list may stand for all addresses of its domains
            found = self.configuration.lists.get(("domainlist", name))
            kind, value = "domainlist", value.rpartition("@")[2]
        if found is None:
            raise Unclear(place, f"the list +{name} is not defined")
        return self.match(kind, found.text, value, session, found.place, depth + 1)

    def _file(self, kind: str, path: str, value: str, session: Session, place: Place, depth: int) -> Truth:
        for line in _lines(path, place):
            is_negated = line.startswith("!")
            if self._item(kind, line.removeprefix("!").strip(), value, session, place, depth + 1) is Truth.YES:
                return truth(not is_negated)
        return Truth.NO

    def lookup(self, item: str, keys: tuple[str, ...], place: Place) -> Truth | None:
        """A look-up in a file; None when the item is none. `keys` are tried in order."""
        found = _LOOKUP.fullmatch(item)
        if found is None:
            return None
        partial, net, kind, star, path = found.groups()
        if kind not in _FILES:
            raise Unclear(place, f"{kind};{path} is a look-up that isn't asked here")
        if kind in ("wildlsearch", "nwildlsearch", "iplsearch") or net:
            return truth(any(_in_wild_file(path, key, place, bool(net) or kind == "iplsearch") for key in keys))
        wanted = [key for one in keys for key in (_partials(one) if partial else (one,))]
        wanted += ["*"] if star else []
        return truth(any(search_file(path, key, place) is not None for key in wanted))

    def networks(self) -> Iterator[Network]:
        """Every network that stands anywhere in the configuration: where two clients may be told apart."""
        texts = [text.text for (kind, _), text in self.configuration.lists.items() if kind == "hostlist"]
        texts += [text.text for name, text in self.configuration.options.items() if "hosts" in name]
        for statements in self.configuration.acls.values():
            texts += [one.value for statement in statements for one in statement.conditions]
        for text in texts:
            yield from _networks_in(text)


def _networks_in(text: str) -> Iterator[Network]:
    for item in items(text):
        bare = item.removeprefix("!").strip()
        network = try_network(bare)
        if network is not None:
            yield network
        for path in re.findall(r"(/[^\s:;{}]+)", bare) if network is None else ():
            inside = (try_network(_first_word(line)) for line in _lines_if_any(path))
            yield from (one for one in inside if one is not None)
    for found in re.findall(r"[0-9]+(?:\.[0-9]+){3}(?:/[0-9]+)?", text):
        network = try_network(found)
        if network is not None:
            yield network


def _lines_if_any(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="surrogateescape").splitlines()
    except (OSError, ValueError):
        return []  # whoever matches against the file will say so


def _first_word(line: str) -> str:
    """The key of a line of a file, without quotes and the colon behind it."""
    words = line.partition("#")[0].split()
    return words[0].rstrip(":").strip('"') if words else "none"


def items(text: str) -> list[str]:
    """The items of a list: separated by colons, or by what "<;" says; a doubled separator stands for itself."""
    separator = ":"
    bare = text.strip()
    changed = re.match(r"<(\S)\s*", bare)
    if changed and not bare.startswith("<\\"):
        separator, bare = changed[1], bare[changed.end() :]
    parts: list[str] = []
    current = ""
    place = 0
    while place < len(bare):
        if bare[place] == separator:
            if bare[place + 1 : place + 2] == separator:
                current += separator
                place += 2
                continue
            parts.append(current.strip())
            current = ""
        else:
            current += bare[place]
        place += 1
    # "a :" ends with no empty item, ":" alone is one.
    return [*parts, current.strip()] if current.strip() else parts


def _lines(path: str, place: Place) -> list[str]:
    try:
        text = Path(path).read_text(errors="surrogateescape")
    except (OSError, ValueError) as error:
        raise Unclear(place, f"{path} can't be read: {error}") from None
    lines = [
        line.partition("#")[0].strip() if line.startswith("#") or " #" in line else line.strip()
        for line in text.splitlines()
    ]
    return [line for line in lines if line]


def _partials(domain: str) -> tuple[str, ...]:
    labels = domain.split(".")
    return (domain, *(f"*.{'.'.join(labels[at:])}" for at in range(len(labels) - 1)))


def _in_wild_file(path: str, key: str, place: Place, is_net: bool) -> bool:
    for line in _lines(path, place):
        found = re.match(r'"([^"]*)"|\S+', line)
        name = ((found[1] or found[0]) if found else "").rstrip(":")
        network = try_network(name) if is_net else None
        address = try_network(key) if is_net else None
        if network is not None and address is not None and network.version == address.version:
            if int(network.network_address) <= int(address.network_address) <= int(network.broadcast_address):
                return True
        elif not is_net and _pattern(name, key, place):
            return True
    return False


def _pattern(pattern: str, value: str, place: Place) -> bool:
    """A literal, a star in front of an ending, or an expression."""
    if pattern.startswith("^"):
        try:
            return re.search(pattern, value, re.IGNORECASE) is not None
        except re.error:
            raise Unclear(place, f"the expression {pattern} is not one that can be judged") from None
    if pattern.startswith("*"):
        return value.lower().endswith(pattern[1:].lower())
    return pattern.lower() == value.lower()


def _domain(lists: Lists, item: str, value: str, session: Session, place: Place) -> Truth:
    del session
    if item.startswith("@mx_"):
        return Truth.NO  # the third party's MX is not this host
    if item in ("@", "@[]"):
        own = lists.configuration.options.get("primary_hostname")
        return truth(item == "@" and own is not None and own.text.lower() == value.lower())
    found = None if item.startswith("^") else lists.lookup(item, (value,), place)
    return truth(_pattern(item, value, place)) if found is None else found


def _host(lists: Lists, item: str, value: str, session: Session, place: Place) -> Truth:
    if item in ("", "@", "@[]"):
        return Truth.NO  # no host at all, or this one
    network = try_network(item)
    if network is not None:
        return truth(network.version == session.address.version and session.address in network)
    found = None if item.startswith("^") else lists.lookup(item, (str(session.address),), place)
    if found is not None:
        return found
    if item.startswith("^"):
        raise Unclear(place, f"{item} asks for a host's name; whether strangers have such a name isn't judged here")
    # Names are looked up and confirmed forwards, so only their owners have them; a bare ending is anybody's.
    is_wide = item.startswith("*") and "." not in item[1:].strip(".")
    return Truth.CHOICE if is_wide else Truth.NO


def _address(lists: Lists, item: str, value: str, session: Session, place: Place) -> Truth:
    if item == "":
        return truth(value == "")
    if item.startswith("^"):
        return truth(_pattern(item, value, place))
    if value == "":
        return Truth.NO
    local, _, domain = value.rpartition("@")
    if item.startswith("@@"):
        raise Unclear(place, f"{item} is a look-up that isn't asked here")
    found = lists.lookup(item, (value, f"*@{domain}"), place)
    if found is not None:
        return found
    if "@" not in item:
        return _domain(lists, item, domain, session, place)
    want_local, _, want_domain = item.rpartition("@")
    if not _pattern(want_local, local, place):
        return Truth.NO
    if want_domain.startswith("+"):
        return lists.match("domainlist", want_domain, domain, session, place)
    return Truth.YES if want_domain == "*" else _domain(lists, want_domain, domain, session, place)


def _local_part(lists: Lists, item: str, value: str, session: Session, place: Place) -> Truth:
    del session
    found = None if item.startswith("^") else lists.lookup(item, (value,), place)
    return truth(_pattern(item, value, place)) if found is None else found


_MATCHES: dict[str, _Match] = {
    "domainlist": _domain,
    "hostlist": _host,
    "addresslist": _address,
    "localpartlist": _local_part,
}
