"""Lab windows: an intentionally open relay, for teaching and for testing testers, within bounds that cannot be left out.

Who: loopback, or networks that are named; a public one holds at most 256 addresses (IPv6: a /64), and an address behind
which strangers may stand (a gateway, a bridge) must be named on purpose, as for trusted networks. Where to: listed domains,
never all. How long: until a moment at most 30 days ahead. What is beyond any of these bounds is refused.
"""

import math
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from posthouse.policy.domains import DomainTable, PatternError
from posthouse.policy.facts import Unknown
from posthouse.policy.networks import Address, Network, NetworkError, NetworkSet, network_text, parse_network

LONGEST_LAB_SECONDS = 30 * 86400.0
NARROWEST_PUBLIC_4 = 24
"""Prefix length: the widest public IPv4 network a lab may be open to."""
NARROWEST_PUBLIC_6 = 64

FOREVER = math.inf
"""A moment after the end of every lab: what a decision without a clock takes for now."""


class LabFault(ValueError):
    """The lab has another shape than a lab may have; the message is a sentence with the remedy."""


class Lab(msgspec.Struct, frozen=True):
    """One lab window. `name` is its listener as the configuration has it ("127.0.0.1:2526"), `ends_at` seconds since 1970."""

    name: str
    networks: NetworkSet
    destinations: DomainTable[str]
    ends_at: float

    @property
    def until(self) -> str:
        """Its end for people, in UTC."""
        return f"{datetime.fromtimestamp(self.ends_at, UTC):%Y-%m-%d %H:%M} UTC"

    @property
    def bounds(self) -> str:
        """For whom and where to, in words."""
        who = ", ".join(map(network_text, self.networks.networks))
        return f"for {who} to {', '.join(self.destinations.patterns)}"

    def is_over(self, now: float) -> bool:
        """Its end has come. `now` in seconds since 1970; no number (a clock that fails) is after every end."""
        return not now < self.ends_at

    def admits(self, client: Address | Unknown) -> bool:
        """The client is in one of its networks."""
        return not isinstance(client, Unknown) and client in self.networks


def make_lab(
    name: str, networks: Iterable[str], destinations: Iterable[str], ends_at: float, without: Iterable[Address] = ()
) -> Lab:
    """A lab of the right shape; `without` are addresses that get nothing although a network holds them. LabFault."""
    try:
        found = tuple(map(parse_network, networks))
        table = DomainTable({pattern: pattern for pattern in destinations})
    except (NetworkError, PatternError) as error:
        raise LabFault(f"the lab on {name}: {error}") from error
    if not found or not len(table):
        raise LabFault(f"the lab on {name} names no networks or no destinations; give both")
    for network in found:
        check_network(network)
    for pattern in table.patterns:
        check_destination(pattern)
    if not math.isfinite(ends_at):
        raise LabFault(f"the lab on {name} has no end; give `until`")
    return Lab(name, NetworkSet(found, without), table, ends_at)


def check_network(network: Network) -> None:
    """LabFault when a lab may not be open to it."""
    narrowest = NARROWEST_PUBLIC_4 if network.version == 4 else NARROWEST_PUBLIC_6
    if network.prefixlen < narrowest and not _is_private(network):
        raise LabFault(
            f"{network} is too wide for a lab, which is an open relay to all in it: "
            f"name private networks, or public ones no wider than a /{narrowest}"
        )


def check_destination(pattern: str) -> None:
    """LabFault when a lab may not relay to it."""
    if pattern == "*" or (not pattern.startswith("[") and "." not in pattern.removeprefix(".")):
        raise LabFault(
            f'"{pattern}" is no destination for a lab: an open relay to everywhere is what this server must never be; '
            f"name the domains"
        )


def check_end(lab: Lab, now: float) -> None:
    """LabFault when its end is past or too far ahead at `now`: for a start and a reload."""
    if lab.is_over(now):
        raise LabFault(f"the lab on {lab.name} ended at {lab.until}: take the listener out, or give another `until`")
    if lab.ends_at - now > LONGEST_LAB_SECONDS:
        raise LabFault(
            f"the lab on {lab.name} would be open until {lab.until}, more than 30 days ahead: give an earlier `until`"
        )


def _is_private(network: Network) -> bool:
    """All of it is loopback, private (RFC 1918, RFC 4193) or link-local: nobody can come from there over the internet."""
    first, last = network.network_address, network.broadcast_address
    return (
        (network.is_loopback and first.is_loopback and last.is_loopback)
        or (network.is_link_local and first.is_link_local and last.is_link_local)
        or any(network.version == block.version and network.subnet_of(block) for block in _PRIVATE)  # type: ignore[arg-type]
    )


_PRIVATE = tuple(map(parse_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")))
