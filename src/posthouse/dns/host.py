"""The addresses of a host that a route names: an administrator's word, followed wherever it leads, without MX records.

As for other programs, hosts(5) comes before the DNS, and `localhost` is this machine (RFC 6761 6.3).
"""

import asyncio
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from posthouse.dns.mx import Host, LookupDeferred, NextHops, Shuffle, in_turn
from posthouse.dns.resolver import Answer, LookupFailed, Resolver
from posthouse.mail.reason import Reason, Slug
from posthouse.smtp.ip import Address

HOSTS_FILE = Path("/etc/hosts")
HOSTS_FILE_TTL = 60.0  # seconds
_LOOPBACK: tuple[Address, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


async def find_host(
    resolver: Resolver, name: str, shuffle: Shuffle, hosts_file: Path = HOSTS_FILE
) -> NextHops | LookupDeferred:
    """The one host as a next hop. LookupDeferred without an address: the name may be mistyped, or not be there yet."""
    name = name.lower().removesuffix(".")
    at_hand = _address(name) or _from_hosts_file(name, hosts_file)
    if at_hand:
        return NextHops((Host(name, at_hand),), name, HOSTS_FILE_TTL)
    answers = await asyncio.gather(resolver.ipv4_addresses(name), resolver.ipv6_addresses(name))
    found = [answer for answer in answers if isinstance(answer, Answer)]
    families: list[list[Address]] = [list(answer.records) for answer in found]
    for addresses in families:
        shuffle(addresses)
    if found:
        return NextHops((Host(name, in_turn(families)),), name, min(answer.ttl for answer in found))
    failure = next((answer.words for answer in answers if isinstance(answer, LookupFailed)), "")
    if failure:
        return LookupDeferred(Reason(Slug.DNS_FAILED, f"the DNS did not say where {name} is: {failure}"), "4.4.3")
    words = f"the next hop {name} has no address in the DNS; check the name in `to` of its route"
    return LookupDeferred(Reason(Slug.NO_ADDRESS, words), "4.4.4")


def _address(name: str) -> tuple[Address, ...]:
    try:
        return (ip_address(name.removeprefix("[").removesuffix("]")),)
    except ValueError:
        return _LOOPBACK if name == "localhost" or name.endswith(".localhost") else ()


def _from_hosts_file(name: str, path: Path) -> tuple[Address, ...]:
    """The lines of hosts(5) that name the host, in their order. No such file is no such line."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return ()
    found: list[Address] = []
    for line in text.splitlines():
        address, *names = line.partition("#")[0].lower().split() or [""]
        if name in names:
            found.extend(_address(address))
    return tuple(found)
