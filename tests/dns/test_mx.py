"""Where mail for a domain goes: RFC 5321 section 5.1 case by case, with a stranger's lies among them."""

import asyncio
import random
from ipaddress import ip_address, ip_network

import dns.message
import dns.rcode
import pytest

from dns_server import Zone, answer, lying_server
from posthouse.dns.host import find_host
from posthouse.dns.mx import (
    ADDRESSES_TRIED,
    HOSTS_TRIED,
    LookupDeferred,
    LoopsToUs,
    NextHops,
    NoNextHop,
    NoSuchDomain,
    NothingUsable,
    NullMx,
    Ourselves,
    Shuffle,
    find_next_hops,
    literal_next_hop,
)
from posthouse.dns.reach import is_public
from posthouse.dns.resolver import Resolver
from posthouse.mail.reason import Slug

US = Ourselves(names=frozenset({"us.test"}), addresses=frozenset({ip_address("8.8.4.1")}))


class Networks:
    def __init__(self, *texts: str) -> None:
        self.networks = [ip_network(text) for text in texts]

    def __contains__(self, address: object, /) -> bool:
        return any(address in network for network in self.networks)


NOWHERE = Networks()


def leave(_: list) -> None:
    """A shuffle that does nothing."""


def find(
    zone, domain: str = "d.test", allow: Networks = NOWHERE, shuffle: Shuffle = leave, us: Ourselves = US
) -> NextHops | NoNextHop:
    async def run() -> NextHops | NoNextHop:
        async with lying_server(zone) as liar:
            return await find_next_hops(Resolver([liar.server], timeout=5), domain, us, allow, shuffle)

    return asyncio.run(run())


def names(found: NextHops | NoNextHop) -> list[str]:
    assert isinstance(found, NextHops), found
    return [host.name for host in found.hosts]


def addresses(found: NextHops | NoNextHop) -> list[str]:
    assert isinstance(found, NextHops), found
    return [str(address) for host in found.hosts for address in host.addresses]


def mx(*exchanges: tuple[int, str], domain: str = "d.test") -> list[str]:
    return [f"{domain}. 60 IN MX {preference} {exchange}." for preference, exchange in exchanges]


def a(name: str, address: str = "8.8.8.8") -> str:
    return f"{name}. 60 IN {'AAAA' if ':' in address else 'A'} {address}"


def test_hosts_come_in_order_of_preference_whatever_the_order_of_records() -> None:
    zone = Zone(*mx((20, "b.test"), (5, "a.test"), (30, "c.test")), a("a.test"), a("b.test"), a("c.test"))
    found = find(zone)
    assert names(found) == ["a.test", "b.test", "c.test"]
    assert isinstance(found, NextHops)
    assert found.ttl == 60


def test_equal_preferences_are_shuffled_and_others_stay_apart() -> None:
    equals = [f"e{number}.test" for number in range(6)]
    zone = Zone(
        *mx((1, "first.test"), *((2, name) for name in equals), (3, "last.test")),
        *(a(name) for name in [*equals, "first.test", "last.test"]),
    )
    orders = set()
    for seed in range(5):
        found = names(find(zone, shuffle=random.Random(seed).shuffle))
        assert found[0] == "first.test"
        assert found[-1] == "last.test"
        assert sorted(found[1:-1]) == equals
        orders.add(tuple(found))
    assert len(orders) > 1


def test_without_mx_the_domain_itself_is_the_host() -> None:
    found = find(Zone(a("d.test", "8.8.8.8"), a("d.test", "2606:4700::1")))
    assert names(found) == ["d.test"]
    assert addresses(found) == ["8.8.8.8", "2606:4700::1"]


def test_an_mx_without_any_address_is_no_reason_to_fall_back_to_the_domains_own_address() -> None:
    found = find(Zone(*mx((10, "gone.test")), a("d.test")))
    assert isinstance(found, NothingUsable)
    assert found.reason.slug is Slug.NO_ADDRESS
    assert found.is_permanent


def test_an_alias_is_followed_for_the_domain_and_for_the_exchange() -> None:
    found = find(
        Zone(
            "d.test. 60 IN CNAME real.test.",
            *mx((10, "alias.test"), domain="real.test"),
            "alias.test. 60 IN CNAME mx.test.",
            a("mx.test"),
        )
    )
    assert names(found) == ["alias.test"]
    assert addresses(found) == ["8.8.8.8"]


def test_a_null_mx_takes_no_mail_even_with_an_address() -> None:
    found = find(Zone("d.test. 60 IN MX 0 .", a("d.test")))
    assert isinstance(found, NullMx)
    assert (found.status, found.reason.slug) == ("5.1.10", Slug.NULL_MX)


def test_a_null_mx_among_others_is_passed_over() -> None:
    assert names(find(Zone("d.test. 60 IN MX 0 .", *mx((10, "a.test")), a("a.test")))) == ["a.test"]


def test_a_domain_that_does_not_exist_is_a_permanent_failure() -> None:
    found = find(Zone(a("else.test")))
    assert isinstance(found, NoSuchDomain)
    assert (found.status, found.reason.slug, found.is_permanent) == ("5.1.2", Slug.NO_SUCH_DOMAIN, True)


def test_a_domain_without_mx_and_address_has_no_next_hop() -> None:
    found = find(Zone("d.test. 60 IN TXT hello"))
    assert isinstance(found, NothingUsable)


def test_a_failing_dns_defers() -> None:
    found = find(lambda query: [answer(query, code=dns.rcode.SERVFAIL)])
    assert isinstance(found, LookupDeferred)
    assert (found.status, found.reason.slug, found.is_permanent) == ("4.4.3", Slug.DNS_FAILED, False)


def test_hosts_whose_addresses_cannot_be_learned_defer_unless_another_can_be_used() -> None:
    def zone_but_fails(*failing: str):
        zone = Zone(*mx((10, "a.test"), (20, "b.test")), a("a.test"), a("b.test"))

        def behave(query: dns.message.QueryMessage):
            fails = query.question[0].name.to_text().rstrip(".") in failing
            return [answer(query, code=dns.rcode.SERVFAIL)] if fails else zone(query)

        return behave

    assert names(find(zone_but_fails("a.test"))) == ["b.test"]
    assert isinstance(find(zone_but_fails("a.test", "b.test")), LookupDeferred)


def test_one_family_that_cannot_be_learned_leaves_the_other() -> None:
    zone = Zone(*mx((10, "a.test")), a("a.test"))

    def behave(query: dns.message.QueryMessage):
        return [answer(query, code=dns.rcode.SERVFAIL)] if query.question[0].rdtype == 28 else zone(query)

    assert addresses(find(behave)) == ["8.8.8.8"]


def test_our_own_name_cuts_the_set_where_we_stand_in_it() -> None:
    zone = Zone(
        *mx((10, "a.test"), (20, "us.test"), (20, "b.test"), (30, "c.test")),
        *(a(f"{name}.test") for name in ("a", "b", "c", "us")),
    )
    assert names(find(zone)) == ["a.test"]


def test_our_own_address_cuts_the_set_too_whatever_its_name() -> None:
    zone = Zone(*mx((10, "a.test"), (20, "b.test"), (30, "c.test")), a("a.test"), a("b.test", "8.8.4.1"), a("c.test"))
    assert names(find(zone)) == ["a.test"]


@pytest.mark.parametrize(
    "records",
    [
        [*mx((10, "us.test"), (20, "b.test")), a("us.test"), a("b.test")],
        [*mx((10, "x.test"), (20, "b.test")), a("x.test", "8.8.4.1"), a("b.test")],
        [a("d.test", "8.8.4.1")],
    ],
)
def test_mail_whose_best_host_is_us_loops(records: list[str]) -> None:
    found = find(Zone(*records))
    assert isinstance(found, LoopsToUs)
    assert (found.status, found.reason.slug) == ("5.4.6", Slug.MX_LOOP)
    assert "local_domains" in found.reason.words


def test_hundreds_of_records_and_addresses_are_bounded() -> None:
    many = [f"m{number}.test" for number in range(300)]
    zone = Zone(
        *mx(*((number, name) for number, name in enumerate(many))),
        *(a(name, f"9.9.{number}.{host}") for number, name in enumerate(many[:30]) for host in range(30)),
    )
    found = find(zone)
    assert names(found) == many[:HOSTS_TRIED]
    assert len(addresses(found)) == HOSTS_TRIED * ADDRESSES_TRIED
    assert len(zone.asked) == 1 + 2 * HOSTS_TRIED


INSIDE = [
    "127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fec0::1", "fd00::1", "fc00::1", "ff02::1", "2001:db8::1",
    "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_a_strangers_dns_does_not_steer_us_into_our_own_network(address: str) -> None:
    assert not is_public(ip_address(address))
    for records in ([*mx((10, "a.test")), a("a.test", address)], [a("d.test", address)]):
        found = find(Zone(*records))
        assert isinstance(found, NothingUsable)
        assert found.reason.slug is Slug.NEXT_HOP_FORBIDDEN
        assert "allow_networks" in found.reason.words


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1", "64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8"]
)
def test_public_addresses_are_followed(address: str) -> None:
    assert is_public(ip_address(address))


def test_a_route_may_name_its_inner_networks_and_only_those_are_followed() -> None:
    zone = Zone(
        *mx((10, "a.test"), (20, "b.test")), a("a.test", "10.1.2.3"), a("b.test", "192.168.1.1"), a("b.test", "8.8.8.8")
    )
    assert names(find(zone)) == ["b.test"]
    assert addresses(find(zone)) == ["8.8.8.8"]
    assert addresses(find(zone, allow=Networks("10.0.0.0/8"))) == ["10.1.2.3", "8.8.8.8"]


@pytest.mark.parametrize("exchange", ["192.0.2.1", "8.8.8.8", "localhost", "x.localhost"])
def test_an_exchange_that_is_an_address_or_localhost_is_passed_over(exchange: str) -> None:
    zone = Zone(*mx((10, exchange), (20, "b.test")), a(exchange, "8.8.8.8"), a("b.test"))
    assert names(find(zone)) == ["b.test"]
    assert (exchange, "A") not in zone.asked
    assert isinstance(find(Zone(*mx((10, exchange)), a(exchange))), NothingUsable)


def test_families_take_turns() -> None:
    zone = Zone(
        *mx((10, "a.test")),
        a("a.test", "8.8.8.8"),
        a("a.test", "8.8.8.9"),
        a("a.test", "8.8.8.10"),
        a("a.test", "2606:4700::1"),
    )
    assert addresses(find(zone)) == ["8.8.8.8", "2606:4700::1", "8.8.8.9", "8.8.8.10"]


def test_a_domain_in_a_labels_is_found() -> None:
    assert names(find(Zone(*mx((10, "a.test"), domain="xn--bcher-kva.test"), a("a.test")), "xn--bcher-kva.test")) == [
        "a.test"
    ]


def test_domains_with_the_same_hosts_share_a_site_and_others_do_not() -> None:
    def site(*exchanges: tuple[int, str]) -> str:
        found = find(Zone(*mx(*exchanges), a("a.test"), a("b.test")))
        assert isinstance(found, NextHops)
        return found.site

    assert site((10, "a.test"), (20, "b.test")) == site((5, "A.test"), (6, "b.test"))
    assert site((10, "a.test"), (10, "b.test")) == site((5, "b.test"), (5, "a.test"))
    assert (
        len(
            {
                site((10, "a.test"), (20, "b.test")),
                site((10, "b.test"), (20, "a.test")),
                site((1, "a.test"), (1, "b.test")),
            }
        )
        == 3
    )


def test_an_address_literal_is_followed_under_the_same_rules() -> None:
    def at(text: str, allow: Networks = NOWHERE) -> NextHops | NoNextHop:
        return literal_next_hop(f"[{text}]", ip_address(text), US, allow)

    assert addresses(at("8.8.8.8")) == ["8.8.8.8"]
    assert isinstance(at("10.0.0.1"), NothingUsable)
    assert addresses(at("10.0.0.1", Networks("10.0.0.0/8"))) == ["10.0.0.1"]
    assert isinstance(at("8.8.4.1"), LoopsToUs)


def host(zone, name: str, hosts_file, seconds: float = 20.0) -> NextHops | LookupDeferred:
    async def run() -> NextHops | LookupDeferred:
        async with lying_server(zone) as liar:
            return await find_host(Resolver([liar.server], timeout=seconds), name, leave, hosts_file)

    return asyncio.run(run())


def test_a_host_that_a_route_names_is_followed_into_our_own_network_and_without_mx(tmp_path) -> None:
    zone = Zone(*mx((10, "other.test"), domain="smart.test"), a("smart.test", "10.0.0.25"), a("smart.test", "fd00::25"))
    assert addresses(host(zone, "Smart.Test.", tmp_path / "none")) == ["10.0.0.25", "fd00::25"]


def test_a_named_host_is_looked_for_in_the_hosts_file_first(tmp_path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# smart.test\n10.0.0.1 other smart.test # mail\n\nfd00::1 SMART.test\nbroken smart.test\n")
    zone = Zone(a("smart.test", "10.0.0.25"))
    assert addresses(host(zone, "smart.test", hosts)) == ["10.0.0.1", "fd00::1"]
    assert zone.asked == []


def test_localhost_and_addresses_need_no_dns(tmp_path) -> None:
    zone = Zone()
    assert addresses(host(zone, "localhost", tmp_path / "none")) == ["127.0.0.1", "::1"]
    assert addresses(host(zone, "10.0.0.7", tmp_path / "none")) == ["10.0.0.7"]
    assert addresses(host(zone, "[fd00::7]", tmp_path / "none")) == ["fd00::7"]
    assert zone.asked == []


def test_a_named_host_without_an_address_waits_since_the_name_may_be_mistyped(tmp_path) -> None:
    found = host(Zone(a("smart.test")), "smrat.test", tmp_path / "none")
    assert isinstance(found, LookupDeferred)
    assert found.reason.slug is Slug.NO_ADDRESS
    found = host(lambda query: [], "smart.test", tmp_path / "none", 0.3)
    assert isinstance(found, LookupDeferred)
    assert found.reason.slug is Slug.DNS_FAILED
