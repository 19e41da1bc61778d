"""The classes of clients and forward-paths that rules can tell apart, each by a representative.

A decision looks at a client's address only to ask in which trusted network it lies and whether it is excepted; so the
addresses fall into finitely many classes: inside each network but outside those nested in it, each excepted address, and
the rest, for both families. It looks at a forward-path only through the pattern nearest to its domain, the lists of
recipients and aliases, and the characters of its local part. One of each class stands for all.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec

from posthouse.policy.facts import ClientAddress, Facts, Role, Unknown
from posthouse.policy.networks import Address, Network
from posthouse.policy.rules import NoList, Place, Rules
from posthouse.smtp.address import POSTMASTER, Path

_ALL = (ip_network("0.0.0.0/0"), ip_network("::/0"))
_OUTSIDERS = tuple(map(ip_address, ("203.0.113.9", "198.51.100.9", "9.9.9.9", "2001:db8:ffff::9", "2620:fe::9")))
"""Preferred representatives of the world outside: the documentation networks (RFC 5737, RFC 3849), then real strangers."""
THIRD_PARTY = "third-party.example"
TRICKS = (
    b"victim%third-party.example",
    b"third-party.example!victim",
    b"victim@third-party.example",
    b"@third-party.example:victim",
    b"victim%third-party.example@relay.example",
    b"relay.example!third-party.example!victim",
    b"smtp:victim",
)
"""Local parts that some next hop reads as a route: one for each character, and the usual pairs."""


class Client(msgspec.Struct, frozen=True):
    """A class of clients by its representative. `network` is the narrowest trusted network around it, None outside all."""

    address: ClientAddress
    network: Network | None
    is_excepted: bool = False


def clients(rules: Rules) -> tuple[Client, ...]:
    """Every class of client address that the rules tell apart, and the two kinds of unknown."""
    return (*_outsiders(rules), *_excepted(rules), *_insiders(rules), *(Client(kind, None) for kind in Unknown))


def outsider(rules: Rules) -> Address:
    """The address of a stranger outside all trusted networks; when they hold every address, one that they hold."""
    found = tuple(_outsiders(rules))
    return found[0].address if found and not isinstance(found[0].address, Unknown) else IPv4Address("203.0.113.9")


def outside_addresses(rules: Rules) -> tuple[Address, ...]:
    """For who tests rules rather than proves them: a stranger of IPv4 and one of IPv6, and the first of the gateways that are
    named as strangers. Where networks hold every address of a family, one that they hold: its strangers are no fewer."""
    outside = [one.address for one in (*_outsiders(rules), *tuple(_excepted(rules))[:1])]
    known = [address for address in outside if not isinstance(address, Unknown)]
    held = [next(one for one in _OUTSIDERS if one.version == version) for version in (4, 6)]
    return (*(one for one in held if one.version not in {address.version for address in known}), *known)


def _outsiders(rules: Rules) -> Iterator[Client]:
    for family in _ALL:
        inside = [net for net in rules.trusted_networks.networks if net.version == family.version]
        preferred = (one for one in _OUTSIDERS if one.version == family.version and not _holds(inside, one))
        address = next(preferred, None) or _first_gap(family, inside)
        if address is not None:
            yield Client(address, None)


def _excepted(rules: Rules) -> Iterator[Client]:
    networks = rules.trusted_networks.networks
    for address in sorted(rules.gateways_as_strangers, key=lambda one: (one.version, int(one))):
        around = [net for net in networks if _holds([net], address)]
        yield Client(address, max(around, key=lambda net: net.prefixlen, default=None), is_excepted=True)


def _insiders(rules: Rules) -> Iterator[Client]:
    networks = rules.trusted_networks.networks
    for network, nested in _with_nested(networks):
        exceptions = [one for one in rules.gateways_as_strangers if _holds([network], one)]
        address = _first_gap(network, [*nested, *(ip_network(one) for one in exceptions)])
        if address is not None:
            yield Client(address, network)


def _with_nested(networks: tuple[Network, ...]) -> Iterator[tuple[Network, list[Network]]]:
    """Each network with those inside it. They are sorted by first address, so those inside follow at once."""
    for place, network in enumerate(networks):
        nested = []
        for other in networks[place + 1 :]:
            if other.version != network.version or int(other.network_address) > int(network.broadcast_address):
                break
            nested.append(other)
        yield network, nested


def _holds(networks: Iterable[Network], address: Address) -> bool:
    return any(net.version == address.version and address in net for net in networks)


def _first_gap(around: Network, holes: Iterable[Network]) -> Address | None:
    """The first address of `around` that no hole holds, a host's rather than the network's own; None when all is covered."""
    make = IPv4Address if around.version == 4 else IPv6Address
    covered = sorted((int(hole.network_address), int(hole.broadcast_address)) for hole in holes)
    first, last = int(around.network_address), int(around.broadcast_address)
    for start in (min(first + 1, last), first):
        candidate = start
        for low, high in covered:
            if candidate < low:
                break
            candidate = max(candidate, high + 1)
        if candidate <= last:
            return make(candidate)
    return None


class Standing(msgspec.Struct, frozen=True):
    """A client in a session: all of a Facts but the forward-path."""

    role: Role
    client: Client
    login: str = ""
    local_uid: int = -1

    def facts(self, forward_path: Path) -> Facts:
        """The facts of a first RCPT with that forward-path."""
        return Facts(self.role, self.client.address, forward_path, self.login, self.local_uid)


def strangers(rules: Rules) -> tuple[Standing, ...]:
    """Every class of session without a right: outside or excepted on a relay listener, anyone without a login on a
    submission listener, a local socket whose peer has no uid."""
    found = []
    for client in clients(rules):
        if client.network is None or client.is_excepted:
            found.append(Standing(Role.RELAY, client))
        found.append(Standing(Role.SUBMISSION, client))
    found.append(Standing(Role.LOCAL, Client(Unknown.NOT_LEARNABLE, None)))
    return tuple(found)


def third_party(rules: Rules) -> str:
    """A domain that is not ours; when "*" makes every domain ours, one that no pattern names."""
    domain = THIRD_PARTY
    while rules.domains.lookup(domain) is not None and len(domain) < 200:
        domain = f"another-{domain}"
    return domain if rules.domains.lookup(domain) is None else THIRD_PARTY


def domains_about(pattern: str) -> tuple[str, ...]:
    """Domains by which a pattern shows its reach: itself, below, deeper, above, and names that only look alike."""
    if pattern == "*":
        return (THIRD_PARTY,)
    if pattern.startswith("["):
        return (pattern,)
    bare = pattern.removeprefix(".")
    above = bare.partition(".")[2]
    return (
        bare,
        f"a.{bare}",
        f"b.a.{bare}",
        f"look{bare}",
        f"{bare}.{THIRD_PARTY}",
        *((above, f"beside.{above}") if above else ()),
    )


def plain_paths(rules: Rules) -> Iterator[Path]:
    """One ordinary address for each domain that some pattern bears upon, and for each entry of the lists of recipients and aliases."""
    for pattern in (*rules.domains.patterns, THIRD_PARTY):
        for domain in domains_about(pattern):
            yield Path(b"victim", domain)
    keys = list(rules.aliases.addresses)
    if not isinstance(rules.recipients, NoList):
        keys += rules.recipients.addresses
        keys += (f"victim@{domain}" for domain in rules.recipients.domains)
    for key in keys:
        local_part, _, domain = key.rpartition("@")
        yield Path(local_part.encode("utf-8", "surrogateescape") or b"victim", domain)
    for name in (*rules.aliases.names, "postmaster"):
        yield Path(name.encode("utf-8", "surrogateescape"), third_party(rules))


def odd_paths(rules: Rules, domains: Iterable[str]) -> Iterator[Path]:
    """The forms by which relays have been opened: routes in the local part, literals, no domain, no local part."""
    outside = third_party(rules)
    for domain in domains:
        yield from (Path(trick, domain) for trick in TRICKS)
        yield Path(b"", domain)
        yield Path(b"postmaster", domain)
        yield Path(b'"victim"', domain)
    for literal in ("[203.0.113.25]", "[127.0.0.1]", "[IPv6:2001:db8::25]", "[IPv6:::1]", "[IPv6:::ffff:203.0.113.25]"):
        yield Path(b"victim", literal)
        yield Path(f"victim@{outside}".encode(), literal)
    yield POSTMASTER
    yield Path(b"", "")
    for local_part in (b"victim", f"victim@{outside}".encode(), f"postmaster%{outside}".encode(), *TRICKS):
        yield Path(local_part, "")


def domains_of_each_kind(rules: Rules, most: int) -> tuple[str, ...]:
    """Domains for the odd forms: of every pattern, or of the first of each kind where there are many, and one of nobody's."""
    found: dict[str, None] = {}
    for place in Place:
        for patterns in _by_form(rules.patterns(place)):
            for pattern in patterns[:most]:
                found.update(dict.fromkeys(domains_about(pattern)[:3]))
    found[third_party(rules)] = None
    return tuple(found)


def _by_form(patterns: tuple[str, ...]) -> tuple[list[str], list[str], list[str]]:
    exact = [pattern for pattern in patterns if pattern[0] not in ".*"]
    return exact, [pattern for pattern in patterns if pattern[0] == "."], [p for p in patterns if p == "*"]
