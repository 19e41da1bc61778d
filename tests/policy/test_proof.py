"""Open or closed: the definitions, and that a fault in a decision shows as an opening."""

import random
import time
from collections.abc import Callable
from ipaddress import ip_address

import msgspec
import pytest

from posthouse.mail.grant import Grant
from posthouse.policy import decide as decide_module
from posthouse.policy import proof
from posthouse.policy.decide import Decision, decide, has_routing_trick, restore_grant
from posthouse.policy.doubts import find_doubts
from posthouse.policy.facts import Facts, Role, Unknown
from posthouse.policy.networks import NetworkSet
from posthouse.policy.proof import Opening, OpeningKind, find_opening
from posthouse.policy.rules import Rules, compile_rules, with_relay

CLOSED = [
    {},
    {"trusted_networks": ["127.0.0.1", "::1"]},
    {"local_domains": ["localhost"], "trusted_networks": ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]},
    {"relay_domains": ["example.com", ".example.com", "x.y.example"], "local_domains": ["example.org"]},
    {"trusted_networks": ["8.0.0.0/8"]},
    {"trusted_networks": ["8.0.0.0/9", "8.128.0.0/9", "8.1.0.0/16"]},
    {"trusted_networks": ["172.0.0.0/8"]},
    {"trusted_networks": ["2000::/16", "fe80::/10", "fc00::/7", "ff00::/8"]},
    {"trusted_networks": ["10.0.0.0/8"], "gateways_as_strangers": ["10.0.0.1"], "gateways_trusted": ["10.0.0.2"]},
    {"relay_domains": ["[192.0.2.1]", "[IPv6:2001:db8::1]"]},
    {"local_domains": ["example.org"], "aliases": [("root", ["me@example.net"])], "recipients": ["a@example.org"]},
    {"local_domains": ["example.org"], "recipients": []},
]
OPEN = [
    ({"relay_domains": ["*"]}, OpeningKind.RELAY_DOMAINS_TOO_WIDE),
    ({"relay_domains": ["example.org", "*"], "recipients": ["a@example.org"]}, OpeningKind.RELAY_DOMAINS_TOO_WIDE),
    ({"relay_domains": ["com"]}, OpeningKind.RELAY_DOMAINS_TOO_WIDE),
    ({"relay_domains": [".com"]}, OpeningKind.RELAY_DOMAINS_TOO_WIDE),
    ({"relay_domains": [".COM."]}, OpeningKind.RELAY_DOMAINS_TOO_WIDE),
    ({"relay_domains": [".com"], "recipients": []}, OpeningKind.RELAY_DOMAINS_TOO_WIDE),
    ({"relay_domains": ["xn--p1ai"]}, OpeningKind.RELAY_DOMAINS_TOO_WIDE),
    ({"local_domains": ["*"]}, OpeningKind.LOCAL_DOMAINS_TOO_WIDE),
    ({"local_domains": [".org"]}, OpeningKind.LOCAL_DOMAINS_TOO_WIDE),
    ({"trusted_networks": ["0.0.0.0/0"]}, OpeningKind.NETWORKS_TOO_WIDE),
    ({"trusted_networks": ["0.0.0.0/1"], "gateways_as_strangers": ["11.0.0.0"]}, OpeningKind.NETWORKS_TOO_WIDE),
    ({"trusted_networks": ["8.0.0.0/8", "9.0.0.0/32"]}, OpeningKind.NETWORKS_TOO_WIDE),
    ({"trusted_networks": ["8.0.0.0/7"]}, OpeningKind.NETWORKS_TOO_WIDE),
    ({"trusted_networks": [f"{n}.0.0.0/10" for n in range(1, 8)]}, OpeningKind.NETWORKS_TOO_WIDE),
    (
        {"trusted_networks": ["0.0.0.0/0"], "gateways_as_strangers": [f"11.0.0.{n}" for n in range(200)]},
        OpeningKind.NETWORKS_TOO_WIDE,
    ),
    ({"trusted_networks": ["::/0"]}, OpeningKind.NETWORKS_TOO_WIDE),
    ({"trusted_networks": ["2000::/15"]}, OpeningKind.NETWORKS_TOO_WIDE),
    ({"trusted_networks": ["2000::/3"]}, OpeningKind.NETWORKS_TOO_WIDE),
    ({"trusted_networks": ["fc00::/6"]}, OpeningKind.NETWORKS_TOO_WIDE),
    ({"trusted_networks": ["::ffff:0:0/96"]}, OpeningKind.NETWORKS_TOO_WIDE),
]


@pytest.mark.parametrize("settings", CLOSED, ids=str)
def test_rules_that_let_no_stranger_through_are_closed(settings: dict[str, object]) -> None:
    assert find_opening(compile_rules(**settings)) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("settings", "kind"), OPEN, ids=str)
def test_rules_that_are_open_by_definition_have_a_counterexample_that_is_granted(
    settings: dict[str, object], kind: OpeningKind
) -> None:
    for rules in (compile_rules(**settings), compile_rules(**settings, relay_enabled=False)):  # type: ignore[arg-type]
        opening = find_opening(rules)
        assert opening is not None
        assert opening.kind is kind
        assert decide(opening.facts, with_relay(rules, True)) == opening.grant
        assert not opening.facts.login
        for words in ("MAIL FROM:<", "RCPT TO:<", str(opening.grant.kind), opening.grant.reason.words):
            assert words in opening.sentence


RULES = compile_rules(
    local_domains=["example.org", ".branch.example.org"],
    relay_domains=["dept.example.org", ".sub.example.org"],
    trusted_networks=["127.0.0.1", "::1", "10.0.0.0/8", "2001:db8:7::/48"],
    gateways_as_strangers=["10.0.0.1"],
    recipients=["user@example.org", "@dept.example.org"],
    aliases=[("root", ["me@example.net"])],
)
GRANT = restore_grant("trusted-network", "trusted-network", "by mistake")
RELAYED = restore_grant("relay-domain", "relay-domain", "by mistake")


def _is_away(facts: Facts) -> bool:
    return RULES.domains.lookup(facts.forward_path.domain) is None and facts.forward_path.domain != ""


FAULTS: dict[str, tuple[Callable[[Facts], bool], Grant]] = {
    "an unknown client counts as trusted": (lambda f: f.client is Unknown.NOT_LEARNABLE and _is_away(f), GRANT),
    "an address not gathered counts as trusted": (lambda f: f.client is Unknown.NOT_YET and _is_away(f), GRANT),
    "IPv6 strangers count as trusted": (lambda f: getattr(f.client, "version", 0) == 6 and _is_away(f), GRANT),
    "a gateway named a stranger counts as trusted": (
        lambda f: f.client == ip_address("10.0.0.1") and _is_away(f),
        GRANT,
    ),
    "submission trusts networks": (
        lambda f: f.role is Role.SUBMISSION and f.client in (ip_address("10.0.0.2"),) and _is_away(f),
        GRANT,
    ),
    "submission trusts loopback": (lambda f: f.role is Role.SUBMISSION and f.client == ip_address("::1"), GRANT),
    "the local socket trusts a peer without a uid": (lambda f: f.role is Role.LOCAL and f.local_uid < 0, GRANT),
    "a suffix matches without its dot": (lambda f: f.forward_path.domain.endswith("sub.example.org"), RELAYED),
    "a domain matches as a prefix": (lambda f: f.forward_path.domain.startswith("dept.example.org"), RELAYED),
    "an exact pattern matches below": (lambda f: f.forward_path.domain == "a.dept.example.org", RELAYED),
    "a domain above matches": (lambda f: f.forward_path.domain == "org", RELAYED),
    "a neighbour matches": (lambda f: f.forward_path.domain == "beside.org", RELAYED),
    "every literal is ours": (lambda f: f.forward_path.domain.startswith("["), RELAYED),
    "our loopback literal is ours": (lambda f: f.forward_path.domain == "[127.0.0.1]", RELAYED),
    "percent is let through": (lambda f: b"%" in f.forward_path.local_part, RELAYED),
    "bang is let through": (lambda f: b"!" in f.forward_path.local_part, RELAYED),
    "a quoted at is let through": (lambda f: b"@" in f.forward_path.local_part, RELAYED),
    "a colon is let through": (lambda f: b":" in f.forward_path.local_part, RELAYED),
    "percent is let through for a pattern below": (
        lambda f: b"%" in f.forward_path.local_part and f.forward_path.domain.endswith(".sub.example.org"),
        RELAYED,
    ),
    "any address without a domain is postmaster": (lambda f: not f.forward_path.domain, RELAYED),
    "a listed name is valid everywhere": (lambda f: f.forward_path.local_part == b"root" and _is_away(f), RELAYED),
    "postmaster of the world is ours": (lambda f: f.forward_path.local_part == b"postmaster" and _is_away(f), RELAYED),
    "an empty local part is granted elsewhere": (lambda f: not f.forward_path.local_part and _is_away(f), RELAYED),
    "a stranger gets a network's grant for our domains": (lambda f: f.forward_path.domain == "example.org", GRANT),
}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_fault_in_the_decision_shows_as_an_opening(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    applies, grant = FAULTS[fault]

    def faulty(facts: Facts, rules: Rules) -> Decision:
        return grant if not facts.login and applies(facts) else decide(facts, rules)

    assert find_opening(RULES) is None
    monkeypatch.setattr(proof, "decide", faulty)
    opening = find_opening(RULES)
    assert opening is not None
    assert opening.kind is OpeningKind.STRANGER_GRANTED
    assert applies(opening.facts)


def test_a_table_of_networks_that_forgets_its_exceptions_shows_as_an_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = NetworkSet(RULES.trusted_networks.networks)

    def forgetful(facts: Facts, rules: Rules) -> Decision:
        return decide(facts, msgspec.structs.replace(rules, trusted_networks=whole))

    monkeypatch.setattr(proof, "decide", forgetful)
    assert isinstance(find_opening(RULES), Opening)


def test_an_alias_that_leads_where_it_should_not_shows_as_an_opening(monkeypatch: pytest.MonkeyPatch) -> None:
    def astray(path: object, grant: object, rules: Rules) -> object:
        return ((decide_module.Path(b"victim", "astray.example"), GRANT),)

    monkeypatch.setattr(proof, "expand", astray)
    opening = find_opening(RULES)
    assert opening is not None
    assert "alias" in opening.sentence


def test_the_proof_is_quick_for_the_rules_of_a_provider() -> None:
    rules = compile_rules(
        relay_domains=[f"d{n}.example.org" for n in range(3000)],
        local_domains=[f".l{n}.example.org" for n in range(300)],
        trusted_networks=[f"10.{n // 250}.{n % 250}.0/24" for n in range(300)],
        recipients=[f"u{n}@d{n}.example.org" for n in range(3000)],
    )
    started = time.process_time()
    assert find_opening(rules) is None
    assert time.process_time() - started < 10


def test_doubts_are_told_though_the_rules_are_closed() -> None:
    rules = compile_rules(
        trusted_networks=["172.0.0.0/8", "10.0.0.0/8", "64:ff9b::/96", "2002:c000::/24"],
        relay_domains=[".co.uk", "example.org"],
        gateways_as_strangers=["192.0.2.1"],
        gateways_trusted=["192.0.2.2"],
    )
    told = "\n".join(find_doubts(rules))
    assert "172.0.0.0/8 holds public addresses beside the private 172.16.0.0/12" in told
    assert ".co.uk" in told
    assert "64:ff9b::/96 holds addresses of NAT64" in told
    assert "2002:c000::/24 holds addresses of 6to4" in told
    assert "gateways_as_strangers names 192.0.2.1" in told
    assert "gateways_trusted names 192.0.2.2" in told
    assert find_doubts(RULES) == []


def test_a_routing_character_at_random_places_is_always_refused_to_strangers() -> None:
    dice = random.Random(5)
    for _ in range(2000):
        local_part = bytes(dice.choice(b'ab.%!@:"\\ <>,') for _ in range(dice.randint(1, 12)))
        domain = dice.choice(["example.org", "dept.example.org", "x.sub.example.org", "example.net", ""])
        path = decide_module.Path(local_part, domain)
        answer = decide(Facts(Role.RELAY, ip_address("203.0.113.9"), path), RULES)
        if has_routing_trick(path):
            assert not isinstance(answer, Grant)
