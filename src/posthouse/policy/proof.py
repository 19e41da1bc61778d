"""Is the relay closed? A proof over the rules, or the counterexample.

*Open* means: a client that is not in a trusted network and not logged in gets a grant to a domain that is neither local
nor a relay domain; or trusted networks hold more than a /8 of public IPv4, or any public IPv6 network wider than a /16;
or `relay_domains` holds "*" or a bare top-level domain (and `local_domains` "*" or all of a top-level domain, since a
local domain's mail goes wherever its route leads); or a lab grants anything beyond its window (`policy.lab`). What a lab
grants within it is *open, on purpose, until then*, which `check` says, and no opening.

The proof asks `decide` itself, once for every class of session and forward-path that the rules tell apart (`classes`),
and judges the answers by definitions spelled out again here, so that a fault in a table shows as an opening too. The
relay option is taken as on, and no network as suspended: what it would open must not be put in force while it is off.
"""

import enum
import math
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses

import msgspec

from posthouse.mail.grant import Grant, GrantKind
from posthouse.policy.classes import (
    Standing,
    clients,
    domains_about,
    domains_of_each_kind,
    odd_paths,
    outsider,
    plain_paths,
    strangers,
    third_party,
)
from posthouse.policy.decide import decide, expand, path_text
from posthouse.policy.facts import Facts, Role, Unknown
from posthouse.policy.lab import Lab
from posthouse.policy.networks import Address, Network
from posthouse.policy.rules import Place, Rules, with_networks, with_relay
from posthouse.smtp.address import Path

ASSUMPTION = (
    "This holds as long as client addresses are real (no NAT, container bridge, proxy or load balancer in front makes "
    "strangers look like a trusted network), passwords are not stolen, and no next hop relays on its trust in this server."
)
"""What the proof takes for granted, in words; `check` prints it."""

MOST_PUBLIC_IPV4 = 1 << 24
"""Addresses: a /8."""
WIDEST_IPV6_PREFIX = 16

_NOT_PUBLIC_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
"""RFC 6890 and its registry: private, shared, loopback, link-local, documentation, benchmarking, multicast, reserved."""
_NOT_PUBLIC_6 = tuple(IPv6Network(text) for text in ("fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"))
"""Those wide enough to matter; documentation and loopback are far narrower than a /16."""


class OpeningKind(enum.StrEnum):
    """In which sense the rules are open."""

    STRANGER_GRANTED = "stranger-granted"
    NETWORKS_TOO_WIDE = "trusted-networks-too-wide"
    RELAY_DOMAINS_TOO_WIDE = "relay-domains-too-wide"
    LOCAL_DOMAINS_TOO_WIDE = "local-domains-too-wide"
    LAB_TOO_WIDE = "lab-too-wide"


class Opening(msgspec.Struct, frozen=True):
    """A counterexample: these facts get this grant. `sentence` says so, why that is open, and what to do."""

    kind: OpeningKind
    facts: Facts
    grant: Grant
    sentence: str


def find_opening(rules: Rules) -> Opening | None:
    """The first opening found, or None: the rules are closed. Takes some seconds for tens of thousands of domains."""
    rules = with_networks(with_relay(rules, enabled=True), suspended=False)
    openings = (_wide_domains(rules), _wide_networks(rules), _granted_strangers(rules), _granted_beyond_labs(rules))
    return next((opening for found in openings for opening in found), None)


def _granted_strangers(rules: Rules) -> Iterator[Opening]:
    """Every class of stranger with every odd form, and one stranger with each plain address there is a rule for.

    Where many domains are alike (hundreds of exact relay domains) the odd forms are walked for some of them, since there a
    decision looks at the form and the kind only; the plain form is walked for each.
    """
    ours = Ours(rules)
    few, many = domains_of_each_kind(rules, most=1), domains_of_each_kind(rules, most=100)
    everyone = strangers(rules)
    for standing in everyone:
        domains = many if standing.role is Role.RELAY else few
        for path in (*odd_paths(rules, domains), *(Path(b"victim", domain) for domain in domains)):
            yield from _ask(standing, path, rules, ours)
    for path in plain_paths(rules):
        yield from _ask(everyone[0], path, rules, ours)


def _ask(standing: Standing, path: Path, rules: Rules, ours: "Ours") -> Iterator[Opening]:
    facts = standing.facts(path)
    answer = decide(facts, rules)
    if not isinstance(answer, Grant):
        return
    if answer.kind not in (GrantKind.LOCAL_DELIVERY, GrantKind.RELAY_DOMAIN) or not ours.may_be_granted(path):
        yield _opening(OpeningKind.STRANGER_GRANTED, facts, answer, "A stranger may relay to a domain that is not ours")
        return
    expanded = expand(path, answer, rules)
    for target, grant in expanded if isinstance(expanded, tuple) else ():
        if target != path and target not in ours.alias_targets and target != rules.postmaster:
            yield _opening(
                OpeningKind.STRANGER_GRANTED, facts, grant, "An alias leads where the configuration does not say"
            )


def _granted_beyond_labs(rules: Rules) -> Iterator[Opening]:
    """Every class of client of each lab, before and after its end, with a login too, with every form of address."""
    for lab in rules.labs:
        around = msgspec.structs.replace(rules, trusted_networks=lab.networks)
        domains = {domain for pattern in lab.destinations.patterns for domain in domains_about(pattern)}
        domains.update(domains_of_each_kind(rules, most=1))
        paths = (*odd_paths(rules, domains), *(Path(b"victim", domain) for domain in domains))
        for client in clients(around):
            for now, login in ((lab.ends_at - 1, ""), (lab.ends_at, ""), (math.inf, ""), (math.nan, ""), (0.0, "user")):
                for path in paths:
                    facts = Facts(Role.LAB, client.address, path, login, lab=lab.name, now=now)
                    answer = decide(facts, rules)
                    if isinstance(answer, Grant) and not _is_within(lab, facts, answer):
                        yield _opening(OpeningKind.LAB_TOO_WIDE, facts, answer, f"The lab on {lab.name} is too wide")


def _is_within(lab: Lab, facts: Facts, grant: Grant) -> bool:
    """What a lab may grant, spelled out without the tables that `decide` uses."""
    path, client = facts.forward_path, facts.client
    patterns = lab.destinations.patterns
    below = not path.domain.startswith("[") and path.domain.endswith(tuple(p for p in patterns if p[0] == "."))
    return (
        grant.kind is GrantKind.LAB_WINDOW
        and facts.now < lab.ends_at
        and not isinstance(client, Unknown)
        and client not in lab.networks.without
        and any(client.version == net.version and client in net for net in lab.networks.networks)
        and (path.domain in patterns or below)
        and not any(character in path.local_part for character in (b"%", b"!", b"@", b":"))
    )


class Ours:
    """What a stranger may be granted, spelled out without the tables that `decide` uses."""

    def __init__(self, rules: Rules) -> None:
        patterns = tuple(rules.domains.patterns)
        self._exact = frozenset(pattern for pattern in patterns if pattern[0] not in ".*")
        self._suffixes = tuple(pattern for pattern in patterns if pattern[0] == ".")
        self._has_rest = "*" in patterns
        self.alias_targets = rules.aliases.all_targets()

    def may_be_granted(self, path: Path) -> bool:
        """A plain address in a domain of ours, or `<postmaster>`."""
        if any(character in path.local_part for character in (b"%", b"!", b"@", b":")):
            return False
        if not path.domain:
            return path.local_part.lower() == b"postmaster"
        below = not path.domain.startswith("[") and path.domain.endswith(self._suffixes)
        return self._has_rest or path.domain in self._exact or below


def _wide_domains(rules: Rules) -> Iterator[Opening]:
    for place in Place:
        for pattern in rules.patterns(place):
            if not _is_too_wide(pattern, place):
                continue
            domain = third_party(rules) if pattern == "*" else domains_about(pattern)[pattern.startswith(".")]
            facts = Facts(Role.RELAY, outsider(rules), Path(b"victim", domain))
            answer = decide(facts, rules)
            if not isinstance(answer, Grant):  # a list of recipients leaves this one out; postmaster is never left out
                facts = Facts(Role.RELAY, outsider(rules), Path(b"postmaster", domain))
                answer = decide(facts, rules)
            if isinstance(answer, Grant):
                kind = OpeningKind(f"{place}-domains-too-wide")
                yield _opening(
                    kind, facts, answer, f'{place}_domains holds "{pattern}": name your own domains, one by one'
                )


def _is_too_wide(pattern: str, place: Place) -> bool:
    """ "*", or a bare top-level domain. A local domain of one label ("localhost") is a name; ".com" is not."""
    if pattern == "*" or pattern.startswith("["):
        return pattern == "*"
    return "." not in pattern.removeprefix(".") and (place is Place.RELAY or pattern.startswith("."))


def _wide_networks(rules: Rules) -> Iterator[Opening]:
    networks = rules.trusted_networks.networks
    public = public_ipv4(networks)
    if sum(last - first + 1 for first, last in public) > MOST_PUBLIC_IPV4:
        addresses = (IPv4Address(number) for number in _members(rules, public))
        yield from _wide_network(rules, addresses, "trusted_networks hold more than a /8 of public IPv4")
    for network in collapse_addresses(net for net in networks if isinstance(net, IPv6Network)):
        if network.prefixlen < WIDEST_IPV6_PREFIX and not any(network.subnet_of(block) for block in _NOT_PUBLIC_6):
            block = (int(network.network_address), int(network.broadcast_address))
            sixes = (IPv6Address(number) for number in _members(rules, [block]))
            complaint = f"trusted_networks hold {network}, which is wider than a /{WIDEST_IPV6_PREFIX}"
            yield from _wide_network(rules, sixes, complaint)


def _members(rules: Rules, blocks: list[tuple[int, int]]) -> Iterator[int]:
    """Addresses of the blocks, the largest first, and of each more than there are exceptions: one of them is granted."""
    for first, last in sorted(blocks, key=lambda block: block[0] - block[1]):
        most = first + len(rules.gateways_as_strangers) + 1
        yield from range(min(first + 1, last), min(last, most) + 1)
        yield first


def _wide_network(rules: Rules, members: Iterable[Address], complaint: str) -> Iterator[Opening]:
    path = Path(b"victim", third_party(rules))
    for member in members:
        facts = Facts(Role.RELAY, member, path)
        answer = decide(facts, rules)
        if isinstance(answer, Grant):
            yield _opening(OpeningKind.NETWORKS_TOO_WIDE, facts, answer, f"{complaint}: name the networks you know")
            return


def public_ipv4(networks: Iterable[Network]) -> list[tuple[int, int]]:
    """The public addresses of the networks as (first, last) pairs, no address twice."""
    fours = (net for net in networks if isinstance(net, IPv4Network))
    blocks = []
    for network in collapse_addresses(fours):
        start, last = int(network.network_address), int(network.broadcast_address)
        for hole in _NOT_PUBLIC_4:
            low, high = int(hole.network_address), int(hole.broadcast_address)
            if high < start or low > last:
                continue
            if low > start:
                blocks.append((start, low - 1))
            start = high + 1
        if start <= last:
            blocks.append((start, last))
    return blocks


def _opening(kind: OpeningKind, facts: Facts, grant: Grant, complaint: str) -> Opening:
    client = (
        f"a client whose address is {facts.client.value}" if isinstance(facts.client, Unknown) else str(facts.client)
    )
    case = (
        f"{client}, without a login, may send MAIL FROM:<stranger@client.example> "
        f"RCPT TO:{path_text(facts.forward_path)} by the grant {grant.kind} ({grant.reason.words})"
    )
    return Opening(kind, facts, grant, f"{complaint}. {case[0].upper()}{case[1:]}.")
