"""From a domain to the hosts that take its mail (RFC 5321 5.1, RFC 7505), or why there is none.

What the DNS says here is a stranger's word: whoever can make us send a mail to his domain chooses these names and addresses.
So addresses that are not public are not followed unless the route names their network, the number of hosts is bounded
whatever the number of records, and a set that holds ourselves is cut where we stand in it, or mail would go in a circle.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain, groupby, zip_longest
from typing import Any, ClassVar, Protocol

import msgspec

from posthouse.dns.reach import is_public
from posthouse.dns.resolver import Answer, LookupFailed, MailExchange, NoName, Resolver, is_host_name
from posthouse.mail.reason import Reason, Slug
from posthouse.smtp.ip import Address

RECORDS_READ = 100
HOSTS_TRIED = 20
ADDRESSES_TRIED = 8  # of one host: a name with hundreds of addresses must not buy hundreds of connections

Shuffle = Callable[[list[Any]], None]
"""Puts a list into random order, in place: `random.shuffle`, or a test's own."""


class Networks(Protocol):
    """A set of networks."""

    def __contains__(self, address: Address, /) -> bool:
        """Whether the address is in one of them."""


class Ourselves(msgspec.Struct, frozen=True):
    """By what a next hop may be known to be this server: its names (lower case), and its addresses other than loopback."""

    names: Collection[str] = ()
    addresses: Collection[Address] = ()


class Host(msgspec.Struct, frozen=True):
    """A next hop: its name, and its addresses in the order to try, both families in turn."""

    name: str
    addresses: tuple[Address, ...]


class NextHops(msgspec.Struct, frozen=True):
    """Where the mail goes: hosts in the order to try, for `ttl` seconds.

    Domains whose mail goes to the same set of hosts have the same `site`.
    """

    hosts: tuple[Host, ...]
    site: str
    ttl: float


class NoNextHop(msgspec.Struct, frozen=True):
    """There is none; `status` is an enhanced code (RFC 3463). Permanent unless it is a LookupDeferred."""

    reason: Reason
    status: str
    is_permanent: ClassVar[bool] = True


class NullMx(NoNextHop, frozen=True):
    """The domain says that it takes no mail (RFC 7505)."""


class NoSuchDomain(NoNextHop, frozen=True):
    """The domain, or a host that a route names, does not exist."""


class LookupDeferred(NoNextHop, frozen=True):
    """The DNS did not say: try later."""

    is_permanent: ClassVar[bool] = False


class LoopsToUs(NoNextHop, frozen=True):
    """The best host is this server, for which the domain is not one of its own (RFC 5321 5.1)."""


class NothingUsable(NoNextHop, frozen=True):
    """The domain exists; none of its hosts has an address that may be used."""


class _Found(msgspec.Struct, frozen=True):
    """What the look-up of one host brought. At most one of the last three is set when there are no `addresses`."""

    exchange: MailExchange
    addresses: tuple[Address, ...]
    ttl: float
    is_us: bool = False
    is_inside: bool = False
    failure: str = ""


async def find_next_hops(
    resolver: Resolver, domain: str, ourselves: Ourselves, allow_networks: Networks, shuffle: Shuffle
) -> NextHops | NoNextHop:
    """The hosts for mail to `domain` (A-labels), by its MX records or, without any, its address records."""
    found = await resolver.mail_exchanges(domain)
    match found:
        case LookupFailed(words):
            return _deferred(domain, words)
        case NoName():
            return NoSuchDomain(Reason(Slug.NO_SUCH_DOMAIN, f"the domain {domain} does not exist in the DNS"), "5.1.2")
        case Answer(records, _):
            exchanges = sorted(records)[:RECORDS_READ]
            if not any(record.exchange for record in exchanges):
                return NullMx(Reason(Slug.NULL_MX, f"the domain {domain} takes no mail (it has a null MX)"), "5.1.10")
        case _:
            exchanges = [MailExchange(0, domain)]
    named = [record for record in exchanges if _names_a_host(record.exchange)]
    if not named:
        return _nothing(domain, "its MX records name no host", Slug.NO_ADDRESS)
    limit = _limit(record for record in named if record.exchange in ourselves.names)
    better = [record for record in named if record.preference < limit]
    if not better:
        return _loops(domain, named[0].exchange)
    tried = list(_in_order(better, shuffle))[:HOSTS_TRIED]
    hosts = await asyncio.gather(*(_look_up(resolver, one, ourselves, allow_networks, shuffle) for one in tried))
    return _choose(domain, hosts, site_key(better), found.ttl)


def literal_next_hop(
    domain: str, address: Address, ourselves: Ourselves, allow_networks: Networks
) -> NextHops | NoNextHop:
    """The next hop for mail to an address literal (RFC 5321 4.1.3), under the same rules as what the DNS says."""
    if address in allow_networks or (address not in ourselves.addresses and is_public(address)):
        return NextHops((Host(domain, (address,)),), domain, float("inf"))
    if address in ourselves.addresses:
        return _loops(domain, domain)
    return _nothing(domain, "it is not a public address", Slug.NEXT_HOP_FORBIDDEN)


def site_key(exchanges: list[MailExchange]) -> str:
    """One text for one set of hosts: names of equal preference joined by commas, groups in order by semicolons."""
    groups = groupby(sorted(exchanges), key=lambda record: record.preference)
    return ";".join(",".join(sorted({record.exchange for record in group})) for _, group in groups)


async def _look_up(
    resolver: Resolver, record: MailExchange, ourselves: Ourselves, allow_networks: Networks, shuffle: Shuffle
) -> _Found:
    """The addresses of one host that may be used."""
    answers = await asyncio.gather(resolver.ipv4_addresses(record.exchange), resolver.ipv6_addresses(record.exchange))
    families: list[list[Address]] = []
    ttl = float("inf")
    is_us = is_inside = False
    failure = ""
    for answer in answers:
        if isinstance(answer, LookupFailed):
            failure = answer.words
            continue
        ttl = min(ttl, answer.ttl)
        usable: list[Address] = []
        for address in answer.records if isinstance(answer, Answer) else ():
            if address in allow_networks:
                usable.append(address)
            elif address in ourselves.addresses:
                is_us = True
            elif is_public(address):
                usable.append(address)
            else:
                is_inside = True
        shuffle(usable)
        families.append(usable)
    return _Found(record, in_turn(families), ttl, is_us, is_inside, failure)


def in_turn(families: list[list[Address]]) -> tuple[Address, ...]:
    """Both families by turns, IPv4 first, so that one that does not work here costs no more than every second attempt."""
    addresses = [address for address in chain.from_iterable(zip_longest(*families)) if address is not None]
    return tuple(addresses[:ADDRESSES_TRIED])


def _choose(domain: str, found: list[_Found], site: str, ttl: float) -> NextHops | NoNextHop:
    limit = _limit(one.exchange for one in found if one.is_us)
    better = [one for one in found if one.exchange.preference < limit]
    usable = [one for one in better if one.addresses]
    if usable:
        hosts = tuple(Host(one.exchange.exchange, one.addresses) for one in usable)
        return NextHops(hosts, site, min(ttl, *(one.ttl for one in usable)))
    failures = [one.failure for one in better if one.failure]
    if failures:
        return _deferred(domain, failures[0])
    us = next((one for one in found if one.is_us), None)
    if us is not None:
        return _loops(domain, us.exchange.exchange)
    if any(one.is_inside for one in better):
        return _nothing(domain, "its hosts have no public address", Slug.NEXT_HOP_FORBIDDEN)
    return _nothing(domain, "its hosts have no address in the DNS", Slug.NO_ADDRESS)


def _limit(ours: Iterable[MailExchange]) -> float:
    """Records from this preference on are dropped: the best one that is us, and all that are no better (RFC 5321 5.1)."""
    return min((record.preference for record in ours), default=float("inf"))


def _in_order(exchanges: list[MailExchange], shuffle: Shuffle) -> Iterator[MailExchange]:
    """By preference; equal ones in random order, to spread the load (RFC 5321 5.1). Each name once."""
    seen: set[str] = set()
    for _, group in groupby(exchanges, key=lambda record: record.preference):
        equals = list(group)
        shuffle(equals)
        for record in equals:
            if record.exchange not in seen:
                seen.add(record.exchange)
                yield record


def _names_a_host(exchange: str) -> bool:
    """Not the root, not an address written as a name, not localhost: such records are mistakes or traps."""
    top_level = exchange.rpartition(".")[2]
    return is_host_name(exchange) and not top_level.isdigit() and top_level != "localhost"


def _deferred(domain: str, words: str) -> LookupDeferred:
    return LookupDeferred(
        Reason(Slug.DNS_FAILED, f"the DNS did not say where mail for {domain} goes: {words}"), "4.4.3"
    )


def _loops(domain: str, host: str) -> LoopsToUs:
    words = (
        f"mail for {domain} goes to {host}, which is this server; name {domain} in local_domains, or give it a route"
    )
    return LoopsToUs(Reason(Slug.MX_LOOP, words), "5.4.6")


def _nothing(domain: str, why: str, slug: Slug) -> NothingUsable:
    remedy = (
        "; if the route may lead there, name the network in its allow_networks"
        if slug is Slug.NEXT_HOP_FORBIDDEN
        else ""
    )
    return NothingUsable(Reason(slug, f"mail for {domain} has no next hop: {why}{remedy}"), "5.4.4")
