"""Aliases: which addresses stand for others, and by what grant."""

import pytest

from posthouse.mail.grant import GrantKind
from posthouse.policy.decide import Deferral, Refusal, decide, expand
from posthouse.policy.facts import Facts, Role, Unknown
from posthouse.policy.rules import Rules, RulesError, compile_rules, with_relay
from posthouse.smtp.address import POSTMASTER, Path, parse_mailbox


def rules_with(aliases: dict[str, list[str]], **more: object) -> Rules:
    settings = {"local_domains": ["example.org", ".hosts.example.org"], "relay_domains": ["dept.example.org"], **more}
    return compile_rules(aliases=aliases.items(), **settings)  # type: ignore[arg-type]


def ends(address: str | Path, rules: Rules) -> list[tuple[str, GrantKind]]:
    path = address if isinstance(address, Path) else parse_mailbox(address.encode())
    grant = decide(Facts(Role.RELAY, Unknown.NOT_LEARNABLE, path), rules)
    found = expand(path, grant, rules)  # type: ignore[arg-type]
    assert isinstance(found, tuple), found
    return [(str(end), one.kind) for end, one in found]


LOCAL, FORWARDING, RELAY = GrantKind.LOCAL_DELIVERY, GrantKind.FORWARDING, GrantKind.RELAY_DOMAIN

RULES = rules_with(
    {
        "root": ["alice@example.org", "on-call@pager.example"],
        "alice@example.org": ["alice@example.org", "archive@example.org"],
        "team": ["root@example.org", "bob@example.org", "alice@example.org"],
        "info@dept.example.org": ["bob@example.org"],
        "@hosts.example.org": ["nobody@example.org"],
        "@x.hosts.example.org": ["bob@example.org"],
        "special@x.hosts.example.org": ["alice@example.org"],
        "Postmaster": ["bob@example.org"],
    },
    local_domains=["example.org", ".hosts.example.org", "hosts.example.org"],
)


def test_an_address_without_an_alias_stands_for_itself() -> None:
    assert ends("bob@example.org", RULES) == [("bob@example.org", LOCAL)]
    assert ends("bob@dept.example.org", RULES) == [("bob@dept.example.org", RELAY)]


def test_a_name_counts_in_every_local_domain_and_in_no_other() -> None:
    expected = [("alice@example.org", LOCAL), ("archive@example.org", LOCAL), ("on-call@pager.example", FORWARDING)]
    assert ends("root@example.org", RULES) == expected
    assert ends("ROOT@example.org", RULES) == expected
    assert ends("root@dept.example.org", RULES) == [("root@dept.example.org", RELAY)]


def test_aliases_lead_to_aliases_and_each_end_is_reached_once() -> None:
    assert [end for end, _ in ends("team@example.org", RULES)] == [
        "alice@example.org",
        "archive@example.org",
        "on-call@pager.example",
        "bob@example.org",
    ]


def test_an_address_that_names_itself_is_delivered_as_well() -> None:
    assert ends("alice@example.org", RULES) == [("alice@example.org", LOCAL), ("archive@example.org", LOCAL)]


def test_an_address_of_a_relay_domain_may_have_an_alias() -> None:
    assert ends("info@dept.example.org", RULES) == [("bob@example.org", LOCAL)]


def test_a_whole_domain_may_have_an_alias_and_the_nearer_key_wins() -> None:
    assert ends("any@hosts.example.org", RULES) == [("nobody@example.org", LOCAL)]
    assert ends("any@x.hosts.example.org", RULES) == [("bob@example.org", LOCAL)]
    assert [end for end, _ in ends("special@x.hosts.example.org", RULES)] == [
        "alice@example.org",
        "archive@example.org",
    ]


def test_a_grant_to_a_target_says_which_alias_led_there() -> None:
    path = parse_mailbox(b"root@example.org")
    grant = decide(Facts(Role.RELAY, Unknown.NOT_LEARNABLE, path), RULES)
    found = expand(path, grant, RULES)  # type: ignore[arg-type]
    assert isinstance(found, tuple)
    assert found[-1][1].reason.words == "<root@example.org> forwards there, set by the configuration"


def test_postmaster_goes_to_its_alias_then_to_the_configured_one_then_to_its_own_box() -> None:
    both = rules_with({"postmaster": ["bob@example.org"]}, postmaster="chief@example.org")
    assert ends(POSTMASTER, both) == [("bob@example.org", LOCAL)]
    named = rules_with({}, postmaster="chief@example.org")
    assert ends(POSTMASTER, named) == [("chief@example.org", LOCAL)]
    away = rules_with({}, postmaster="chief@example.net")
    assert ends(POSTMASTER, away) == [("chief@example.net", FORWARDING)]
    assert ends(POSTMASTER, rules_with({})) == [("postmaster", LOCAL)]
    assert ends(POSTMASTER, compile_rules()) == [("postmaster", LOCAL)]


def test_the_configured_postmaster_may_have_aliases_himself() -> None:
    rules = rules_with({"chief": ["on-call@pager.example"]}, postmaster="chief@example.org")
    assert ends(POSTMASTER, rules) == [("on-call@pager.example", FORWARDING)]


def test_with_relay_off_an_alias_that_leads_elsewhere_waits() -> None:
    off = with_relay(RULES, False)
    path = parse_mailbox(b"root@example.org")
    grant = decide(Facts(Role.RELAY, Unknown.NOT_LEARNABLE, path), off)
    found = expand(path, grant, off)  # type: ignore[arg-type]
    assert isinstance(found, Deferral)
    assert found.reply.code == 450
    assert ends("alice@example.org", off) == [("alice@example.org", LOCAL), ("archive@example.org", LOCAL)]


@pytest.mark.parametrize(
    ("aliases", "words"),
    [
        ({"a": ["b@example.org"], "b": ["a@example.org"]}, "leads back to itself"),
        ({"a": ["b@example.org"], "b": ["c@example.org"], "c": ["b@example.org"]}, "leads back to itself"),
        ({"a": []}, "has no target"),
        ({"a": ["root"]}, "write root@ and the domain"),
        ({"a": ["x@@y"]}, "is not an address"),
        ({"a@example.net": ["b@example.org"]}, "neither local nor a relay domain"),
        ({"@example.net": ["b@example.org"]}, "neither local nor a relay domain"),
        ({f"a{i}": [f"a{i + 1}@example.org"] for i in range(60)}, "leads back to itself"),
    ],
)
def test_an_alias_that_cannot_be_meant_is_an_error(aliases: dict[str, list[str]], words: str) -> None:
    with pytest.raises(RulesError, match=words):
        rules_with(aliases)


def test_a_ring_that_got_in_all_the_same_is_refused() -> None:
    import msgspec

    from posthouse.policy.aliases import AliasTable

    ring = AliasTable([("a", ["b@example.org"]), ("b", ["a@example.org"])])
    rules = msgspec.structs.replace(rules_with({}), aliases=ring)
    path = parse_mailbox(b"a@example.org")
    found = expand(path, decide(Facts(Role.RELAY, Unknown.NOT_LEARNABLE, path), rules), rules)  # type: ignore[arg-type]
    assert isinstance(found, Refusal)
    assert found.reply.enhanced == "5.4.6"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"local_domains": ["a b"]}, "local_domains: .* is not a domain"),
        ({"relay_domains": ["*.example.org"]}, "relay_domains: .* is not a domain"),
        (
            {"local_domains": ["x.org"], "relay_domains": ["X.org"]},
            "x.org stands in local_domains and in relay_domains",
        ),
        ({"trusted_networks": ["10.0.0.1/8"]}, "trusted_networks: .* write 10.0.0.0/8"),
        ({"gateways_trusted": ["10.0.0.0/8"]}, "gateways_trusted: .* is not an IP address"),
        ({"gateways_trusted": ["10.0.0.1"], "gateways_as_strangers": ["10.0.0.1"]}, "one or the other"),
        ({"recipients": ["a@b@c"]}, "recipients: .* is not an address"),
        ({"postmaster": "chief"}, "is not an address"),
    ],
)
def test_rules_that_contradict_themselves_are_an_error_in_a_sentence(settings: dict[str, object], words: str) -> None:
    with pytest.raises(RulesError, match=words):
        compile_rules(**settings)  # type: ignore[arg-type]
