"""What a user calls a host, and where it is: HOST[:PORT] as `test` and `scan` take it. One host, never a network."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec

from posthouse.dns.host import find_host
from posthouse.dns.mx import NextHops
from posthouse.dns.resolver import Resolver
from posthouse.smtp.address import AddressError, parse_domain

Address = IPv4Address | IPv6Address

_port = re.compile(r"(.*):(\d{1,6})", re.DOTALL).fullmatch
_LONGEST = 300


class PlaceFault(ValueError):
    """The text names no place, or the place can't be found; one sentence that says what to write."""


class Place(msgspec.Struct, frozen=True):
    """A host by name or address, and a port; 0 for "not said"."""

    host: str
    port: int = 0

    @property
    def address(self) -> Address | None:
        """The address, where that is how it was called."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


def parse_place(text: str) -> Place:
    """`mx.example.org`, `192.0.2.1:587`, `::1`, `[2001:db8::1]:25`. PlaceFault."""
    text = text.strip()
    shown = repr(text[:60])
    if not text or len(text) > _LONGEST or not text.isprintable():
        raise PlaceFault(f"{shown} is no host: write mx.example.org, 192.0.2.1:587 or [2001:db8::1]:25")
    if _is_network(text):
        raise PlaceFault(f"{shown} is a network: name its hosts one by one; nothing here sweeps networks")
    host, port = _split(text)
    if port > 65_535:
        raise PlaceFault(f"{shown}: ports end at 65535")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    bare = bare[5:] if bare.lower().startswith("ipv6:") else bare
    try:
        return Place(str(ip_address(bare)), port)
    except ValueError:
        pass
    try:
        return Place(parse_domain(host.rstrip(".").encode()), port)
    except AddressError:
        raise PlaceFault(f"{shown} is no host: write mx.example.org, 192.0.2.1:587 or [2001:db8::1]:25") from None


def _split(text: str) -> tuple[str, int]:
    """Host and port; an IPv6 address without brackets has no port."""
    found = _port(text)
    if found is None or (":" in found.group(1) and not found.group(1).endswith("]")):
        return text, 0
    return found.group(1), int(found.group(2))


def _is_network(text: str) -> bool:
    if "/" not in text:
        return False
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


async def find_addresses(resolver: Resolver, place: Place) -> tuple[Address, ...]:
    """All addresses of the host, in the order in which they are to be tested. PlaceFault when there is none."""
    address = place.address
    if address is not None:
        return (address,)
    found = await find_host(resolver, place.host, lambda _addresses: None)
    if not isinstance(found, NextHops):
        words = found.reason.words.partition(";")[0].replace("the next hop ", "")
        raise PlaceFault(f"{place.host} can't be found: {words}")
    return tuple(dict.fromkeys(address for host in found.hosts for address in host.addresses))
