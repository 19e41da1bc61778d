"""Sets of networks."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.policy import networks
from posthouse.policy.networks import NetworkError, NetworkSet, normalise_address, parse_address, parse_network

SET = NetworkSet.parse(
    ["10.0.0.0/8", "10.1.0.0/16", "192.0.2.7", "2001:db8::/32", "::ffff:198.51.100.0/120"],
    without=["10.1.0.1", "2001:db8::1"],
)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.2.3.4", "10.0.0.0/8"),
        ("10.1.3.4", "10.1.0.0/16"),
        ("10.1.0.1", ""),
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.8", ""),
        ("2001:db8::2", "2001:db8::/32"),
        ("2001:db8::1", ""),
        ("::ffff:10.2.3.4", "10.0.0.0/8"),
        ("::ffff:10.1.0.1", ""),
        ("198.51.100.9", "198.51.100.0/24"),
        ("::10.2.3.4", ""),
        ("a02:304::", ""),
    ],
)
def test_the_narrowest_network_is_found_and_exceptions_are_none(address: str, network: str) -> None:
    for _ in range(2):  # the second answer comes from the memo
        assert SET.match_text(ip_address(address)) == network
        assert (ip_address(address) in SET) is bool(network)


def test_one_number_in_both_families_is_two_addresses() -> None:
    both = NetworkSet.parse(["0.0.0.1"])
    assert IPv4Address(1) in both
    assert IPv6Address(1) not in both


def test_mapped_and_scoped_addresses_have_one_form() -> None:
    assert normalise_address(ip_address("::ffff:192.0.2.1")) == ip_address("192.0.2.1")
    assert normalise_address(ip_address("fe80::1%eth0")) == ip_address("fe80::1")
    assert parse_address("[2001:db8::1]") == ip_address("2001:db8::1")


def test_a_network_with_host_bits_is_an_error_that_offers_both_meanings() -> None:
    with pytest.raises(NetworkError, match=r"write 192\.0\.2\.0/24 for the network, 192\.0\.2\.5 for the one address"):
        parse_network("192.0.2.5/24")


@pytest.mark.parametrize("text", ["", "localhost", "10.0.0", "10.0.0.0/33", "300.1.1.1", "010.0.0.1"])
def test_what_is_no_network_is_an_error_that_says_what_to_write(text: str) -> None:
    with pytest.raises(NetworkError, match=r"write 192\.0\.2\.0/24"):
        parse_network(text)


def test_the_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_MEMO_LIMIT", 100)
    found = NetworkSet.parse(["10.0.0.0/8"])
    for number in range(1000):
        assert IPv4Address((10 << 24) + number) in found
    assert len(found._memos[0]) <= 100


_fours = st.builds(
    lambda number, length: ip_network((number >> (32 - length) << (32 - length), length)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)
_sixes = st.builds(
    lambda number, length: ip_network((number >> (128 - length) << (128 - length), length)),
    st.integers(2**32, 2**128 - 1),
    st.integers(0, 128),
)


@given(st.lists(_fours | _sixes, max_size=8), st.data())
def test_membership_is_that_of_the_networks_one_by_one(listed: list[networks.Network], data: st.DataObject) -> None:
    edges = [int(net.network_address) for net in listed] + [int(net.broadcast_address) for net in listed]
    near = st.sampled_from(edges or [0]).flatmap(lambda edge: st.integers(max(edge - 1, 0), edge + 1))
    address = ip_address(data.draw(near | st.integers(0, 2**128 - 1)) % 2**128)
    holding = [net for net in listed if net.version == address.version and address in net]
    found = NetworkSet(listed).match(normalise_address(address))
    if normalise_address(address) == address:
        assert found == max(holding, key=lambda net: net.prefixlen, default=None)


@given(st.lists(_fours | _sixes, max_size=8), _fours | _sixes)
def test_a_collapsed_set_covers_what_its_networks_cover(
    listed: list[networks.Network], asked: networks.Network
) -> None:
    found = NetworkSet(listed)
    if found.covers(asked):
        assert found.collapsed().covers(asked)
    assert found.covers(asked) is any(
        net.version == asked.version and asked.subnet_of(net)  # type: ignore[arg-type]
        for net in listed
    )
