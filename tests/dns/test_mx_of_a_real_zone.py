"""MX cases as a real authoritative server (Knot) answers them."""

import asyncio
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from peer_servers import NameServer, knot
from posthouse.dns.exchange import Server
from posthouse.dns.mx import (
    LoopsToUs,
    NextHops,
    NoNextHop,
    NoSuchDomain,
    NothingUsable,
    NullMx,
    Ourselves,
    find_next_hops,
)
from posthouse.dns.resolver import Resolver
from posthouse.mail.reason import Slug

pytestmark = pytest.mark.peer

MANY = 400  # records: more than fit into one datagram
ZONE = "\n".join(
    [
        "a A 8.8.8.1",
        "a AAAA 2606:4700::1",
        "b A 8.8.8.2",
        "us A 8.8.4.4",
        "ordered MX 20 b",
        "ordered MX 10 a",
        "equal MX 10 a",
        "equal MX 10 b",
        "implicit A 8.8.8.3",
        "null MX 0 .",
        "null A 8.8.8.3",
        "alias CNAME ordered",
        "target MX 10 via",
        "via CNAME a",
        "dangling MX 10 nowhere",
        "cut MX 10 a",
        "cut MX 20 us",
        "cut MX 30 b",
        "loop MX 10 us",
        "inside MX 10 loopback",
        "inside MX 20 private",
        "loopback A 127.0.0.1",
        "loopback AAAA ::1",
        "private A 10.0.0.1",
        "round CNAME trip",
        "trip CNAME round",
        "text TXT nothing",
        "xn--bcher-kva MX 10 a",
        *(f"many MX {number} m{number}" for number in range(MANY)),
        *(f"m{number} A 8.8.8.{number % 250 + 1}" for number in range(MANY)),
    ]
)


@pytest.fixture(scope="module")
def zone() -> Iterator[NameServer]:
    with knot({"z.test": ZONE}) as server:
        yield server


class Allowed:
    def __contains__(self, address: object, /) -> bool:
        return address in ip_network("10.0.0.0/8")


def find(zone: NameServer, name: str) -> NextHops | NoNextHop:
    async def run() -> NextHops | NoNextHop:
        resolver = Resolver([Server(zone.address, zone.port)])
        us = Ourselves(addresses=frozenset({ip_address("8.8.4.4")}))
        return await find_next_hops(resolver, f"{name}.z.test", us, Allowed(), lambda _: None)

    return asyncio.run(run())


def names(found: NextHops | NoNextHop) -> list[str]:
    assert isinstance(found, NextHops), found
    return [host.name.removesuffix(".z.test") for host in found.hosts]


@pytest.mark.parametrize(
    ("domain", "hosts"),
    [
        ("ordered", ["a", "b"]),
        ("alias", ["a", "b"]),
        ("target", ["via"]),
        ("implicit", ["implicit"]),
        ("cut", ["a"]),
        ("inside", ["private"]),
        ("xn--bcher-kva", ["a"]),
    ],
)
def test_hosts_of_a_real_zone(zone: NameServer, domain: str, hosts: list[str]) -> None:
    assert names(find(zone, domain)) == hosts


def test_equal_hosts_of_a_real_zone_are_one_site(zone: NameServer) -> None:
    found = find(zone, "equal")
    assert sorted(names(found)) == ["a", "b"]
    assert isinstance(found, NextHops)
    assert found.site == "a.z.test,b.z.test"


def test_both_families_of_a_real_host(zone: NameServer) -> None:
    found = find(zone, "ordered")
    assert isinstance(found, NextHops)
    assert found.hosts[0].addresses == (ip_address("8.8.8.1"), ip_address("2606:4700::1"))


@pytest.mark.parametrize(
    ("domain", "kind", "slug"),
    [
        ("null", NullMx, Slug.NULL_MX),
        ("gone", NoSuchDomain, Slug.NO_SUCH_DOMAIN),
        ("dangling", NothingUsable, Slug.NO_ADDRESS),
        ("text", NothingUsable, Slug.NO_ADDRESS),
        ("loopback", NothingUsable, Slug.NEXT_HOP_FORBIDDEN),
        ("loop", LoopsToUs, Slug.MX_LOOP),
    ],
)
def test_domains_of_a_real_zone_without_a_next_hop(
    zone: NameServer, domain: str, kind: type[NoNextHop], slug: Slug
) -> None:
    found = find(zone, domain)
    assert isinstance(found, kind)
    assert found.reason.slug is slug
    assert found.is_permanent


@pytest.mark.parametrize("domain", ["round", "elsewhere.test."])
def test_what_a_real_server_will_not_answer_is_tried_again_later(zone: NameServer, domain: str) -> None:
    found = find(zone, domain)
    assert isinstance(found, NoNextHop)
    assert found.reason.slug in (Slug.DNS_FAILED, Slug.NO_SUCH_DOMAIN)


def test_hundreds_of_records_come_over_tcp_and_are_bounded(zone: NameServer) -> None:
    assert names(find(zone, "many")) == [f"m{number}" for number in range(20)]
