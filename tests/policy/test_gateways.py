"""Gateways and bridges from the texts of /proc/net, and the trusted networks that hold them."""

from ipaddress import ip_address

import pytest

from posthouse.policy.gateways import (
    Gateway,
    bridge_addresses,
    default_gateways,
    local_addresses4,
    masked_openings,
)
from posthouse.policy.rules import compile_rules

ROUTE = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
tun0\t00000000\t0100080A\t0003\t0\t0\t0\t00000080\t0\t0\t0
tun0\t00000080\t0100080A\t0003\t0\t0\t0\t00000080\t0\t0\t0
eth0\t0000140A\t020200C0\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
lo\t00000000\t010200C0\t0203\t0\t0\t0\t00000000\t0\t0\t0
ppp0\t00000000\t00000000\t0001\t0\t0\t9\t00000000\t0\t0\t0
nonsense
"""
IPV6_ROUTE = """\
fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000002 00000000 00450003     eth0
20000000000000000000000000000000 03 00000000000000000000000000000000 00 fd000000000000000000000000000009 00000400 00000002 00000000 00000003     tun0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
"""  # noqa: E501 - as the kernel writes it
FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 0.0.0.0
        /0 universe UNICAST
     +-- 172.17.0.0/16 2 0 2
        +-- 172.17.0.0/30 2 0 2
           |-- 172.17.0.0
              /16 link UNICAST
           |-- 172.17.0.1
              /32 host LOCAL
        |-- 172.17.255.255
           /32 link BROADCAST
Local:
     |-- 127.0.0.1
        /32 host LOCAL
           |-- 192.0.2.2
              /32 host LOCAL
           |-- 172.17.0.1
              /32 host LOCAL
"""
IF_INET6 = """\
fd000000000000000000000000000002 04 40 00 82     eth0
00000000000000000000000000000001 01 80 10 80       lo
fd170000000000000000000000000001 05 40 00 80  docker0
"""


def addresses(gateways: list[Gateway]) -> list[str]:
    return [str(one.address) for one in gateways]


def test_the_next_hops_of_default_routes_are_gateways_split_ones_too() -> None:
    assert addresses(default_gateways(ROUTE, IPV6_ROUTE, "little")) == ["192.0.2.1", "10.8.0.1", "fe80::1", "fd00::9"]


def test_numbers_are_in_the_byte_order_of_the_machine() -> None:
    big = "Iface\tDestination\neth0\t00000000\tC0000201\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
    assert addresses(default_gateways(big, "", "big")) == ["192.0.2.1"]


def test_our_own_addresses_on_bridges_are_found_for_both_families() -> None:
    found = bridge_addresses({"docker0"}, ROUTE, FIB_TRIE, IF_INET6, "little")
    assert addresses(found) == ["172.17.0.1", "fd17::1"]
    assert all("bridge docker0" in one.what for one in found)
    assert bridge_addresses(set(), ROUTE, FIB_TRIE, IF_INET6, "little") == []


def test_the_addresses_of_this_machine_are_the_local_leaves() -> None:
    assert [str(one) for one in local_addresses4(FIB_TRIE)] == ["172.17.0.1", "127.0.0.1", "192.0.2.2"]


@pytest.mark.parametrize("text", ["", "\n", "garbage\n" * 3, "Iface\n\x00\n", "a b c\n1 2 3\n"])
def test_texts_that_make_no_sense_hold_no_gateway(text: str) -> None:
    assert default_gateways(text, text) == []
    assert bridge_addresses({"docker0"}, text, text, text) == []


GATEWAYS = [
    Gateway(ip_address("192.0.2.1"), "the default gateway of this machine (on eth0)"),
    Gateway(ip_address("172.17.0.1"), "this machine's address on the bridge docker0"),
    Gateway(ip_address("fd17::1"), "this machine's address on the bridge docker0"),
    Gateway(ip_address("127.0.0.1"), "a bridge of a strange kind"),
    Gateway(ip_address("::1"), "a bridge of a strange kind"),
]


def masked(**settings: object) -> list[str]:
    return [str(one.gateway.address) for one in masked_openings(compile_rules(**settings), GATEWAYS)]  # type: ignore[arg-type]


def test_a_trusted_network_must_not_hold_a_gateway_that_nobody_named() -> None:
    assert masked(trusted_networks=["192.0.2.0/24"]) == ["192.0.2.1"]
    assert masked(trusted_networks=["172.16.0.0/12", "fd00::/8"]) == ["172.17.0.1", "fd17::1"]
    assert masked(trusted_networks=["192.0.2.1"]) == ["192.0.2.1"]
    assert masked(trusted_networks=["::ffff:192.0.2.0/120"]) == ["192.0.2.1"]
    assert masked(trusted_networks=["10.0.0.0/8"]) == []


def test_a_gateway_named_on_purpose_is_no_opening() -> None:
    for key in ("gateways_as_strangers", "gateways_trusted"):
        assert masked(trusted_networks=["192.0.2.0/24"], **{key: ["192.0.2.1"]}) == []
        assert masked(trusted_networks=["192.0.2.0/24"], **{key: ["192.0.2.2"]}) == ["192.0.2.1"]


def test_loopback_is_nobodys_gateway() -> None:
    assert masked(trusted_networks=["127.0.0.0/8", "::1"]) == []


def test_the_sentence_names_the_network_the_address_and_both_remedies() -> None:
    (found,) = masked_openings(compile_rules(trusted_networks=["192.0.2.0/24"]), GATEWAYS)
    for words in ("192.0.2.0/24", "192.0.2.1", "default gateway", "gateways_as_strangers", "gateways_trusted"):
        assert words in found.sentence
