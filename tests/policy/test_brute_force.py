"""The proof against brute force, on generated rules.

Closed means that no sampled stranger gets a grant outside the local and relay domains; every counterexample is granted.
What is ours is spelled out here once more, slowly and without any table.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from posthouse.mail.grant import Grant, GrantKind
from posthouse.policy.decide import decide, expand
from posthouse.policy.facts import Facts, Role, Unknown
from posthouse.policy.networks import Address, normalise_address
from posthouse.policy.proof import Opening, OpeningKind, find_opening
from posthouse.policy.rules import Rules, RulesError, compile_rules
from posthouse.smtp.address import Path

NAMES = [
    "example.org",
    "dept.example.org",
    "a.b.dept.example.org",
    "example.net",
    "com",
    "org",
    "x.com",
    "third-party.example",
]
PATTERNS = [*NAMES, *(f".{name}" for name in NAMES), "*", "[192.0.2.1]", "[IPv6:2001:db8::1]"]
NETWORKS = [
    "127.0.0.1", "127.0.0.0/8", "::1", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.3", "192.0.2.0/24", "203.0.113.0/24",
    "198.51.100.0/24", "203.0.113.9", "9.9.9.9", "8.0.0.0/8", "9.0.0.0/8", "172.0.0.0/8", "0.0.0.0/1", "128.0.0.0/1",
    "0.0.0.0/0", "::ffff:192.0.2.0/120", "2001:db8::/32", "2001:db8:ffff::9", "2000::/3", "2000::/16", "fc00::/7", "::/0",
]  # fmt: skip
WIDE = {"*", "com", "org", ".com", ".org", "0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/0", "2000::/3", "::/0"}
ADDRESSES = ["10.0.0.1", "10.1.2.3", "10.1.0.1", "192.0.2.1", "203.0.113.9", "2001:db8::1", "8.0.0.1", "127.0.0.1"]
LOCAL_PARTS = [
    b"user", b"postmaster", b"root", b"", b"victim%example.net", b"example.net!victim", b"victim@example.net",
    b"@example.net:victim", b"a:b", b"%", b"user+tag",
]  # fmt: skip


def some(values: list[str], most: int) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(values), max_size=most, unique=True)


def settings_from(patterns: list[str], networks: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    listed = ["user@example.org", "@dept.example.org", "root", "user@example.net"]
    aliases = [("root", ("me@far.example",)), ("postmaster", ("me@example.org",))]
    return st.fixed_dictionaries(
        {
            "local_domains": some(patterns, 3),
            "relay_domains": some(patterns, 3),
            "trusted_networks": some(networks, 4),
            "gateways_as_strangers": some(ADDRESSES, 3),
            "recipients": st.none() | some(listed, 3),
            "aliases": st.lists(st.sampled_from(aliases), max_size=2),
            "postmaster": st.sampled_from(["", "me@far.example", "root@example.org"]),
            "relay_enabled": st.booleans(),
        }
    )


SETTINGS = settings_from([one for one in PATTERNS if one not in WIDE], [one for one in NETWORKS if one not in WIDE])
SETTINGS |= settings_from(PATTERNS, NETWORKS)  # half of them are open at once, by definition


def compiled(chosen: dict[str, Any]) -> Rules | None:
    try:
        return compile_rules(**chosen)
    except RulesError:
        return None


def is_ours(domain: str, chosen: dict[str, Any]) -> bool:
    labels = domain.split(".")
    for pattern in chosen["local_domains"] + chosen["relay_domains"]:
        wanted = pattern.split(".")
        if pattern in ("*", domain):
            return True
        if pattern.startswith(".") and not domain.startswith("["):
            below = wanted[1:]
            if len(labels) > len(below) and labels[-len(below) :] == below:
                return True
    return False


def is_trusted(address: Address, chosen: dict[str, Any]) -> bool:
    address = normalise_address(address)
    if any(ip_address(one) == address for one in chosen["gateways_as_strangers"]):
        return False
    mapped = IPv6Address(int(address) | 0xFFFF << 32) if address.version == 4 else address
    for text in chosen["trusted_networks"]:
        network = ip_network(text)
        if address.version == network.version and address in network:
            return True
        if address.version == 4 and network.version == 6 and network.prefixlen >= 96 and mapped in network:
            return True
    return False


@st.composite
def clients(draw: st.DrawFn, chosen: dict[str, Any]) -> Address:
    networks = [ip_network(text) for text in chosen["trusted_networks"] + chosen["gateways_as_strangers"]]
    edges = [edge for net in networks for edge in (int(net.network_address), int(net.broadcast_address))]
    near = st.sampled_from(edges or [0]).flatmap(lambda edge: st.integers(max(0, edge - 1), edge + 1))
    number = draw(near | st.integers(0, 2**32 - 1) | st.integers(0, 2**128 - 1)) % 2**128
    if number < 2**32 and draw(st.booleans()):
        return draw(st.sampled_from([IPv4Address(number), IPv6Address(0xFFFF << 32 | number)]))
    return IPv6Address(number)


@st.composite
def domains(draw: st.DrawFn) -> str:
    pattern = draw(st.sampled_from(PATTERNS))
    bare = pattern.lstrip(".").replace("*", "far.example")
    if bare.startswith("["):
        return bare
    return draw(
        st.sampled_from([bare, f"x.{bare}", f"y.x.{bare}", f"x{bare}", f"{bare}.evil.example", "[198.51.100.1]", ""])
    )


@st.composite
def strangers(draw: st.DrawFn, chosen: dict[str, Any]) -> Facts:
    path = Path(draw(st.sampled_from(LOCAL_PARTS)), draw(domains()))
    role = draw(st.sampled_from(list(Role)))
    client = draw(clients(chosen) | st.sampled_from(list(Unknown)))
    accepted = draw(st.sampled_from([0, 0, 0, 99, 100, 1000]))
    return Facts(role, client, path, recipients_accepted=accepted)


def may_relay(facts: Facts, chosen: dict[str, Any]) -> bool:
    return facts.role is Role.RELAY and not isinstance(facts.client, Unknown) and is_trusted(facts.client, chosen)


EFFORT = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
LONG = settings(EFFORT, max_examples=2000)


def no_stranger_is_granted_more(chosen: dict[str, Any], data: st.DataObject) -> None:
    rules = compiled(chosen)
    if rules is None or find_opening(rules) is not None:
        return
    for _ in range(20):
        facts = data.draw(strangers(chosen))
        answer = decide(facts, rules)
        if may_relay(facts, chosen) or not isinstance(answer, Grant):
            continue
        path = facts.forward_path
        assert answer.kind in (GrantKind.LOCAL_DELIVERY, GrantKind.RELAY_DOMAIN)
        assert is_ours(path.domain, chosen) or path == Path(b"postmaster", "")
        assert not set(path.local_part) & set(b"%!@:")
        assert facts.recipients_accepted < 100
        assert facts.role is not Role.SUBMISSION
        ends = expand(path, answer, rules)
        configured = {target for _, targets in chosen["aliases"] for target in targets} | {chosen["postmaster"]}
        for end, _ in ends if isinstance(ends, tuple) else ():
            assert end == path or str(end) in configured


def the_counterexample_is_granted(chosen: dict[str, Any]) -> None:
    rules = compiled(chosen)
    opening = None if rules is None else find_opening(rules)
    if rules is None or opening is None:
        return
    assert decide(opening.facts, compile_rules(**{**chosen, "relay_enabled": True})) == opening.grant
    assert_it_is_open(opening, chosen)


def assert_it_is_open(opening: Opening, chosen: dict[str, Any]) -> None:
    facts = opening.facts
    assert not facts.login
    assert facts.local_uid < 0
    match opening.kind:
        case OpeningKind.NETWORKS_TOO_WIDE:
            assert may_relay(facts, chosen)
            assert not is_ours(facts.forward_path.domain, chosen) or opening.grant.kind is not GrantKind.TRUSTED_NETWORK
        case OpeningKind.RELAY_DOMAINS_TOO_WIDE:
            assert any(p == "*" or "." not in p.lstrip(".") for p in chosen["relay_domains"])
        case OpeningKind.LOCAL_DOMAINS_TOO_WIDE:
            assert any(p == "*" or (p[0] == "." and "." not in p[1:]) for p in chosen["local_domains"])
        case _:
            pytest.fail(f"decide itself lets a stranger through: {opening.sentence}")


@EFFORT
@given(SETTINGS, st.data())
def test_closed_means_that_no_sampled_stranger_gets_a_grant(chosen: dict[str, Any], data: st.DataObject) -> None:
    no_stranger_is_granted_more(chosen, data)


@EFFORT
@given(SETTINGS)
def test_every_counterexample_really_is_granted(chosen: dict[str, Any]) -> None:
    the_counterexample_is_granted(chosen)


@EFFORT
@given(SETTINGS)
def test_what_is_open_by_definition_is_found(chosen: dict[str, Any]) -> None:
    rules = compiled(chosen)
    if rules is None:
        return
    wide = {"0.0.0.0/1", "128.0.0.0/1", "0.0.0.0/0", "2000::/3", "::/0"} & set(chosen["trusted_networks"])
    wide |= {p for p in chosen["relay_domains"] if p == "*" or ("." not in p.lstrip(".") and p[0] != "[")}
    eights = {"8.0.0.0/8", "9.0.0.0/8"} <= set(chosen["trusted_networks"])
    if wide or eights:
        assert find_opening(rules) is not None


@pytest.mark.slow
@LONG
@given(SETTINGS, st.data())
def test_closed_means_closed_for_long(chosen: dict[str, Any], data: st.DataObject) -> None:
    no_stranger_is_granted_more(chosen, data)
    the_counterexample_is_granted(chosen)
