"""Which addresses a configuration tells apart, and whether those that may relay are few enough to be known.

Every list of networks cuts the addresses into blocks inside which no rule can tell two clients apart. An audit asks about
one address of each block. Those that may relay without logging in are either a few networks that somebody named, or too
many: the same bound as for our own trusted networks (more than a /8 of public IPv4, or IPv6 wider than a /16).
"""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, summarize_address_range
from itertools import pairwise

import msgspec

from posthouse.policy.gateways import Gateway
from posthouse.policy.networks import Address, Network, NetworkError, NetworkSet, network_text, parse_network
from posthouse.policy.proof import MOST_PUBLIC_IPV4, WIDEST_IPV6_PREFIX, public_ipv4

_DOCUMENTED = (
    IPv4Address("203.0.113.9"),
    IPv4Address("198.51.100.9"),
    IPv4Address("192.0.2.9"),
    IPv6Address("2001:db8::9"),
)
"""Addresses that a counterexample may show without pointing at anybody (RFC 5737, RFC 3849)."""
_BITS = {4: 32, 6: 128}


class Block(msgspec.Struct, frozen=True):
    """Addresses from `first` to `last` of one family; no list tells them apart."""

    version: int
    first: int
    last: int

    def example(self) -> Address:
        """One of them: of a documentation network where there is one."""
        for address in _DOCUMENTED:
            if address.version == self.version and self.first <= int(address) <= self.last:
                return address
        number = min(self.first + 9, self.last)
        return IPv4Address(number) if self.version == 4 else IPv6Address(number)

    def examples(self) -> tuple[Address, ...]:
        """Several, far apart: should a list have escaped notice, they are told apart."""
        width = self.last - self.first
        numbers = {self.first + width * part // 7 for part in (1, 3, 5)}
        kind = IPv4Address if self.version == 4 else IPv6Address
        return (self.example(), *(kind(number) for number in sorted(numbers)))

    def networks(self) -> tuple[Network, ...]:
        """The same addresses as networks."""
        if self.version == 4:
            return tuple(summarize_address_range(IPv4Address(self.first), IPv4Address(self.last)))
        return tuple(summarize_address_range(IPv6Address(self.first), IPv6Address(self.last)))


def blocks(networks: Iterable[Network]) -> tuple[Block, ...]:
    """All addresses of both families, cut wherever one of the networks begins or ends."""
    edges = {version: {0, 1 << bits} for version, bits in _BITS.items()}
    for network in networks:
        edges[network.version] |= {int(network.network_address), int(network.broadcast_address) + 1}
    found = []
    for version, places in edges.items():
        ordered = sorted(places)
        found += [Block(version, first, after - 1) for first, after in pairwise(ordered)]
    return tuple(found)


def too_many(granted: Sequence[Block]) -> Address | None:
    """An address among those that may relay when they are more than anyone can know; None when they are few."""
    networks = [network for block in granted for network in block.networks()]
    public = public_ipv4(network for network in networks if isinstance(network, IPv4Network))
    if sum(last - first + 1 for first, last in public) > MOST_PUBLIC_IPV4:
        first, last = max(public, key=lambda ends: ends[1] - ends[0])
        return _documented(granted, 4) or IPv4Address(min(first + 9, last))
    sixes = [
        network for network in networks if isinstance(network, IPv6Network) and network.prefixlen < WIDEST_IPV6_PREFIX
    ]
    public6 = [network for network in sixes if network.is_global or network.prefixlen < 7]
    if public6:
        return _documented(granted, 6) or public6[0].network_address + 9
    return None


def _documented(granted: Sequence[Block], version: int) -> Address | None:
    for address in _DOCUMENTED:
        for block in granted:
            if address.version == version == block.version and block.first <= int(address) <= block.last:
                return address
    return None


def stranger(networks: Iterable[Network]) -> Address:
    """An address that none of the networks holds; the widest gap's when all ordinary ones are named."""
    named = tuple(networks)
    known = NetworkSet(named)
    for address in _DOCUMENTED:
        if address not in known:
            return address
    gaps = [block for block in blocks(named) if block.version == 4 and block.example() not in known]
    return max(gaps, key=lambda block: block.last - block.first).example() if gaps else _DOCUMENTED[0]


def try_network(text: str) -> Network | None:
    """A network or an address as servers write them, host bits or not; None when it is neither."""
    bare = text.strip().strip("[]").removeprefix("IPv6:").removeprefix("ipv6:")
    try:
        return parse_network(bare)
    except NetworkError:
        pass
    try:
        return IPv4Network(bare, strict=False) if ":" not in bare else IPv6Network(bare, strict=False)
    except ValueError:
        return None


def gateway_doubts(trusted: Iterable[Network], gateways: Iterable[Gateway]) -> tuple[str, ...]:
    """A sentence for each gateway that a trusted network holds: behind it every stranger may stand."""
    networks = NetworkSet(trusted)
    doubts = []
    for gateway in gateways:
        network = None if gateway.address.is_loopback else networks.match(gateway.address)
        if network is not None:
            doubts.append(
                f"the trusted network {network_text(network)} holds {gateway.address}, {gateway.what}: behind NAT or a "
                f"container bridge every stranger may come from that address, and relay; trust single addresses, or logins"
            )
    return tuple(doubts)
