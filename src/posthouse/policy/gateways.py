"""Masked clients: a trusted network that holds a gateway of this machine trusts every stranger behind it.

A container bridge, SNAT or a proxy that rewrites source addresses makes all the world look like one address near us: the
default gateway's, or that of a bridge of ours. Nearly every accidental open relay was made so, under rules that looked
right. Hence such an address inside a trusted network must be named on purpose, as a stranger or as trusted.

This module reads the texts of /proc/net (a hardened unit has no netlink socket); `serve.machine` fetches them.
"""

import sys
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import msgspec

from posthouse.policy.networks import Address, Network, NetworkSet, network_text, normalise_address
from posthouse.policy.rules import Rules

_IS_GATEWAY = 0x2  # RTF_GATEWAY
_IS_REJECT = 0x200  # RTF_REJECT
_WIDEST_SPLIT_4 = 1
"""Prefix length: a VPN replaces the default route by 0.0.0.0/1 and 128.0.0.0/1."""
_WIDEST_SPLIT_6 = 3
"""The same for IPv6: 2000::/3 is all that is public."""


class Gateway(msgspec.Struct, frozen=True):
    """An address behind which strangers may stand; `what` says what it is to this machine."""

    address: Address
    what: str


class Masked(msgspec.Struct, frozen=True):
    """A trusted network that holds a gateway nobody has named; `sentence` says so with both remedies."""

    network: Network
    gateway: Gateway
    sentence: str


class _Route4(msgspec.Struct, frozen=True):
    interface: str
    destination: IPv4Network
    gateway: IPv4Address
    flags: int


def parse_routes4(route: str, byte_order: str = sys.byteorder) -> list[_Route4]:
    """The lines of /proc/net/route; numbers are in the machine's byte order. Lines that aren't routes are passed over."""
    found = []
    for line in route.splitlines()[1:]:
        fields = line.split()
        try:
            destination, gateway, mask = (_number4(fields[i], byte_order) for i in (1, 2, 7))
            network = IPv4Network((destination, mask.bit_count()))
            found.append(_Route4(fields[0], network, IPv4Address(gateway), int(fields[3], 16)))
        except (ValueError, IndexError):
            continue
    return found


def _number4(field: str, byte_order: str) -> int:
    octets = bytes.fromhex(field)
    return int.from_bytes(octets, "little" if byte_order == "little" else "big")


def default_gateways(route: str, ipv6_route: str, byte_order: str = sys.byteorder) -> list[Gateway]:
    """The next hops of default routes, from the texts of /proc/net/route and /proc/net/ipv6_route."""
    found: dict[Address, Gateway] = {}
    for one in parse_routes4(route, byte_order):
        is_via = one.flags & _IS_GATEWAY and not one.flags & _IS_REJECT and int(one.gateway)
        if is_via and one.destination.prefixlen <= _WIDEST_SPLIT_4:
            found[one.gateway] = Gateway(one.gateway, f"the default gateway of this machine (on {one.interface})")
    for line in ipv6_route.splitlines():
        fields = line.split()
        try:
            length, next_hop, flags = int(fields[1], 16), IPv6Address(int(fields[4], 16)), int(fields[8], 16)
        except (ValueError, IndexError):
            continue
        if flags & _IS_GATEWAY and not flags & _IS_REJECT and int(next_hop) and length <= _WIDEST_SPLIT_6:
            address = normalise_address(next_hop)
            found[address] = Gateway(address, f"the default gateway of this machine (on {fields[9]})")
    return list(found.values())


def bridge_addresses(
    bridges: Collection[str], route: str, fib_trie: str, if_inet6: str, byte_order: str = sys.byteorder
) -> list[Gateway]:
    """Our own addresses on bridge interfaces, of which `bridges` holds the names.

    For IPv6 /proc/net/if_inet6 tells it; for IPv4 they are the local addresses of /proc/net/fib_trie that lie in a network
    which /proc/net/route says is on the bridge's own link.
    """
    found: dict[Address, Gateway] = {}
    local = local_addresses4(fib_trie)
    for one in parse_routes4(route, byte_order):
        if one.interface in bridges and not int(one.gateway):
            for address in local:
                if address in one.destination:
                    found[address] = Gateway(address, f"this machine's address on the bridge {one.interface}")
    for line in if_inet6.splitlines():
        fields = line.split()
        if len(fields) == 6 and fields[5] in bridges:
            six = IPv6Address(int(fields[0], 16))
            found[six] = Gateway(six, f"this machine's address on the bridge {fields[5]}")
    return list(found.values())


def local_addresses4(fib_trie: str) -> list[IPv4Address]:
    """This machine's IPv4 addresses from /proc/net/fib_trie: the leaves followed by "/32 host LOCAL"."""
    found: dict[IPv4Address, None] = {}
    leaf = ""
    for line in fib_trie.splitlines():
        text = line.strip()
        if text.startswith("|-- "):
            leaf = text[4:]
        elif leaf and text == "/32 host LOCAL":
            found[IPv4Address(leaf)] = None
    return list(found)


def masked_openings(rules: Rules, gateways: Iterable[Gateway]) -> list[Masked]:
    """Every gateway that a trusted network holds and the configuration does not name. Loopback is nobody's gateway."""
    return list(_masked(rules, tuple(gateways)))


def _masked(rules: Rules, gateways: Iterable[Gateway]) -> Iterator[Masked]:
    trusted = [("trusted network", rules.trusted_networks), *(("lab network", lab.networks) for lab in rules.labs)]
    for what, networks in trusted:
        yield from _masked_in(networks, what, rules, gateways)


def _masked_in(networks: NetworkSet, what: str, rules: Rules, gateways: Iterable[Gateway]) -> Iterator[Masked]:
    for gateway in gateways:
        address = normalise_address(gateway.address)
        if address.is_loopback or address in rules.gateways_trusted:
            continue
        network = networks.match(address)  # None for those named as strangers
        if network is not None:
            sentence = (
                f"The {what} {network_text(network)} holds {address}, {gateway.what}: behind NAT or a container "
                f"bridge every stranger may come from that address. Name it in gateways_as_strangers, and it gets no "
                f"grant; or in gateways_trusted, if only hosts you trust come from it."
            )
            yield Masked(network, gateway, sentence)
