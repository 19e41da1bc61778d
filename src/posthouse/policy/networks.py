"""Sets of IP networks. A client's address is an IPv4Address even when it came in over IPv6 as ::ffff:192.0.2.1."""

import functools
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network

from posthouse.smtp.ip import Address as Address  # noqa: PLC0414 - for those who ask about networks
from posthouse.smtp.ip import normalise_address as normalise_address  # noqa: PLC0414

Network = IPv4Network | IPv6Network

_MEMO_LIMIT = 16_384  # addresses a family; a flood of strangers must not fill the memory
_Memo = dict[int, tuple[Network, str] | None]
_MAPPED = IPv6Network("::ffff:0:0/96")


class NetworkError(ValueError):
    """The text is not an address or network; the message is a sentence with the remedy."""


@functools.lru_cache(maxsize=4096)
def parse_address(text: str) -> Address:
    """An address from its text, brackets allowed. NetworkError when it is none."""
    try:
        return normalise_address(ip_address(text.strip().removeprefix("[").removesuffix("]")))
    except ValueError:
        raise NetworkError(f'"{text}" is not an IP address; write 192.0.2.1 or 2001:db8::1') from None


def parse_network(text: str) -> Network:
    """A network from "192.0.2.0/24", "2001:db8::/32" or a single address. NetworkError, also when host bits are set."""
    bare = text.strip().replace("[", "").replace("]", "")
    try:
        network = ip_network(bare)
    except ValueError:
        raise NetworkError(_why_not(text, bare)) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network


def _why_not(text: str, bare: str) -> str:
    try:
        meant = ip_network(bare, strict=False)
    except ValueError:
        return f'"{text}" is not a network; write 192.0.2.0/24, 2001:db8::/32 or a single address'
    single = bare.partition("/")[0]
    return f'"{text}" names an address and a wider network at once; write {meant} for the network, {single} for the one address'


PRIVATE = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
"""Networks that anyone may use for himself (RFC 1918, RFC 4193)."""


class NetworkSet:
    """Networks of both families, less single addresses (`without`), with fast membership.

    A memo an address, else one dictionary access a prefix length. Never changed once made.
    """

    __slots__ = ("_families", "_memos", "_without", "networks", "without")

    def __init__(self, networks: Iterable[Network], without: Iterable[Address] = ()) -> None:
        self.networks = tuple(sorted(set(networks), key=lambda net: (net.version, net.network_address, net.prefixlen)))
        self.without = frozenset(map(normalise_address, without))
        self._without = tuple(frozenset(int(one) for one in self.without if one.version == v) for v in (4, 6))
        self._families = (_by_mask(self.networks, 4), _by_mask(self.networks, 6))
        self._memos: tuple[_Memo, _Memo] = ({}, {})

    @classmethod
    def parse(cls, texts: Iterable[str], without: Iterable[str] = ()) -> "NetworkSet":
        """The set from the texts of networks and addresses. NetworkError for the first that is none."""
        return cls(map(parse_network, texts), map(parse_address, without))

    def match(self, address: Address) -> Network | None:
        """The narrowest network that holds the address, None when none does."""
        found = self._find(address)
        return None if found is None else found[0]

    def match_text(self, address: Address) -> str:
        """The same as text, "" when none does: printing a network costs more than finding it."""
        found = self._find(address)
        return "" if found is None else found[1]

    def covers(self, network: Network) -> bool:
        """One network of the set holds all of that one, exceptions aside."""
        around = self._families[network.version == 6]
        mask = _mask(network)
        return any((low & mask) == low and int(network.network_address) & low in found for low, found in around)

    def collapsed(self) -> "NetworkSet":
        """The same addresses by as few networks as can be, none inside another."""
        fours = collapse_addresses(net for net in self.networks if isinstance(net, IPv4Network))
        sixes = collapse_addresses(net for net in self.networks if isinstance(net, IPv6Network))
        return NetworkSet((*fours, *sixes), self.without)

    def _find(self, address: Address) -> tuple[Network, str] | None:
        family = 0
        if isinstance(address, IPv6Address):
            address = normalise_address(address)
            family = isinstance(address, IPv6Address)
        number = int(address)
        memo = self._memos[family]
        if number in memo:
            return memo[number]
        found = None
        if number not in self._without[family]:
            for mask, networks in self._families[family]:
                found = networks.get(number & mask)
                if found is not None:
                    break
        if len(memo) >= _MEMO_LIMIT:
            memo.clear()
        memo[number] = found
        return found

    def __contains__(self, address: Address) -> bool:
        return self._find(address) is not None

    def __len__(self) -> int:
        return len(self.networks)

    def __repr__(self) -> str:
        return f"NetworkSet({', '.join(map(str, self.networks))})"


def _mask(network: Network) -> int:
    bits = network.max_prefixlen
    return (1 << bits) - (1 << (bits - network.prefixlen))


def _by_mask(networks: tuple[Network, ...], version: int) -> tuple[tuple[int, dict[int, tuple[Network, str]]], ...]:
    """(mask, networks by their first address), the longest prefix first."""
    masks: dict[int, dict[int, tuple[Network, str]]] = {}
    for network in networks:
        if network.version == version:
            masks.setdefault(_mask(network), {})[int(network.network_address)] = (network, network_text(network))
    return tuple(sorted(masks.items(), reverse=True))


def network_text(network: Network) -> str:
    """As people write it: a single address without its prefix length."""
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)
