"""Who may send where: the table of decisions."""

from ipaddress import ip_address
from typing import Any

import pytest

from posthouse.mail.grant import Grant, GrantKind
from posthouse.mail.reason import Slug
from posthouse.policy.decide import (
    NEED_CLIENT,
    Deferral,
    Refusal,
    decide,
    expand,
    grant_notification,
    has_routing_trick,
    restore_grant,
)
from posthouse.policy.facts import Facts, Role, Unknown
from posthouse.policy.rules import Rules, compile_rules, with_networks, with_relay
from posthouse.smtp.address import NULL_PATH, POSTMASTER, Path, parse_mailbox

RULES = compile_rules(
    local_domains=["example.org", ".branch.example.org"],
    relay_domains=["dept.example.org", ".sub.example.org", "[192.0.2.80]"],
    trusted_networks=["127.0.0.1", "::1", "10.0.0.0/8", "2001:db8:7::/48"],
    gateways_as_strangers=["10.0.0.1", "2001:db8:7::1"],
    gateways_trusted=["10.255.0.1"],
)
STRANGER = "203.0.113.9"
TRUSTED = "10.2.3.4"


def rcpt(client: str, address: str | Path, rules: Rules = RULES, **more: Any) -> object:
    path = address if isinstance(address, Path) else parse_mailbox(address.encode())
    return decide(Facts(more.pop("role", Role.RELAY), ip_address(client), path, **more), rules)


def kind(answer: object) -> GrantKind:
    assert isinstance(answer, Grant), answer
    return answer.kind


def code(answer: object) -> str:
    assert isinstance(answer, Refusal | Deferral), answer
    assert answer.reply.text == answer.reason.words
    return f"{answer.reply.code} {answer.reply.enhanced} {answer.reason.slug}"


@pytest.mark.parametrize(
    ("client", "address", "granted"),
    [
        (STRANGER, "user@example.org", GrantKind.LOCAL_DELIVERY),
        (STRANGER, "user@EXAMPLE.org", GrantKind.LOCAL_DELIVERY),
        (STRANGER, "user@a.branch.example.org", GrantKind.LOCAL_DELIVERY),
        (STRANGER, "user@dept.example.org", GrantKind.RELAY_DOMAIN),
        (STRANGER, "user@a.b.sub.example.org", GrantKind.RELAY_DOMAIN),
        (STRANGER, "user@[192.0.2.80]", GrantKind.RELAY_DOMAIN),
        (TRUSTED, "user@example.org", GrantKind.LOCAL_DELIVERY),
        (TRUSTED, "user@dept.example.org", GrantKind.RELAY_DOMAIN),
        (TRUSTED, "user@example.net", GrantKind.TRUSTED_NETWORK),
        (TRUSTED, "user@[198.51.100.1]", GrantKind.TRUSTED_NETWORK),
        ("::ffff:10.2.3.4", "user@example.net", GrantKind.TRUSTED_NETWORK),
        ("2001:db8:7::25", "user@example.net", GrantKind.TRUSTED_NETWORK),
        ("10.255.0.1", "user@example.net", GrantKind.TRUSTED_NETWORK),
        ("127.0.0.1", "user@example.net", GrantKind.TRUSTED_NETWORK),
        (TRUSTED, "user%far.example@example.net", GrantKind.TRUSTED_NETWORK),
        (TRUSTED, "far!user@dept.example.org", GrantKind.RELAY_DOMAIN),
    ],
)
def test_a_client_is_granted_what_the_rules_say(client: str, address: str, granted: GrantKind) -> None:
    assert kind(rcpt(client, address)) is granted


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (STRANGER, "user@example.net"),
        (STRANGER, "user@branch.example.org"),
        (STRANGER, "user@x.dept.example.org"),
        (STRANGER, "user@notexample.org"),
        (STRANGER, "user@org"),
        (STRANGER, "user@[127.0.0.1]"),
        (STRANGER, "user@[192.0.2.81]"),
        (STRANGER, "postmaster@example.net"),
        ("127.0.0.2", "user@example.net"),
        ("10.0.0.1", "user@example.net"),
        ("::ffff:10.0.0.1", "user@example.net"),
        ("2001:db8:7::1", "user@example.net"),
        ("2001:db8:8::1", "user@example.net"),
    ],
)
def test_a_stranger_may_not_relay_elsewhere(client: str, address: str) -> None:
    assert code(rcpt(client, address)) == "550 5.7.1 relay-denied"


FORMS = [
    "victim%example.net@{ours}",
    "victim%example.net%far.example@{ours}",
    "example.net!victim@{ours}",
    "far.example!example.net!victim@{ours}",
    '"victim@example.net"@{ours}',
    '"victim%example.net"@{ours}',
    '"example.net!victim"@{ours}',
    '"@example.net:victim"@{ours}',
    '"victim:example.net"@{ours}',
    '"<victim@example.net>"@{ours}',
    '"\\@victim"@{ours}',
    '"victim@example.net"%far.example@{ours}',
    "victim%[198.51.100.1]@{ours}",
    "postmaster%example.net@{ours}",
]


@pytest.mark.parametrize(
    "ours", ["example.org", "dept.example.org", "a.sub.example.org", "[192.0.2.80]", "example.net"]
)
@pytest.mark.parametrize("form", FORMS)
def test_stranger_may_not_relay_through_a_local_part(form: str, ours: str) -> None:
    try:
        answer = rcpt(STRANGER, form.format(ours=ours))
    except ValueError:  # the grammar has refused it already
        return
    assert code(answer) == "550 5.7.1 routing-trick"


def test_a_local_part_never_chooses_a_route_for_a_client_with_a_right() -> None:
    path = parse_mailbox(b"victim%example.net@example.org")
    assert kind(rcpt(TRUSTED, path)) is GrantKind.LOCAL_DELIVERY
    assert path == Path(b"victim%example.net", "example.org")


def test_routing_characters_are_seen_anywhere_in_a_local_part() -> None:
    assert all(has_routing_trick(Path(b"a" + bytes([c]) + b"b", "x")) for c in b"%!@:")
    assert not has_routing_trick(Path(b"user+tag=example.net-_/.#", "x"))


def test_trusted_networks_do_not_count_on_a_submission_listener() -> None:
    for client in (TRUSTED, "127.0.0.1", STRANGER):
        for address in ("user@example.net", "user@example.org", "user%x@example.org"):
            assert code(rcpt(client, address, role=Role.SUBMISSION)) == "530 5.7.0 login-required"
        assert code(rcpt(client, POSTMASTER, role=Role.SUBMISSION)) == "530 5.7.0 login-required"


@pytest.mark.parametrize("role", [Role.RELAY, Role.SUBMISSION])
def test_a_login_may_relay(role: Role) -> None:
    answer = rcpt(STRANGER, "user@example.net", role=role, login="alice")
    assert kind(answer) is GrantKind.AUTHENTICATED_USER
    assert "alice" in answer.reason.words  # type: ignore[attr-defined]


def test_a_uid_counts_on_the_local_socket_only() -> None:
    away = parse_mailbox(b"user@example.net")
    local = Facts(Role.LOCAL, Unknown.NOT_LEARNABLE, away, local_uid=0)
    assert kind(decide(local, RULES)) is GrantKind.LOCAL_USER
    assert code(rcpt(STRANGER, away, local_uid=1000)) == "550 5.7.1 relay-denied"
    assert code(decide(Facts(Role.LOCAL, ip_address("10.2.3.4"), away), RULES)) == "550 5.7.1 relay-denied"


def test_an_address_not_learnable_never_grants_by_network() -> None:
    def unknown(address: str, **more: Any) -> object:
        return decide(Facts(Role.RELAY, Unknown.NOT_LEARNABLE, parse_mailbox(address.encode()), **more), RULES)

    assert code(unknown("user@example.net")) == "550 5.7.1 client-address-unknown"
    assert code(unknown("a%b@example.org")) == "550 5.7.1 routing-trick"
    assert kind(unknown("user@example.org")) is GrantKind.LOCAL_DELIVERY
    assert kind(unknown("user@example.net", login="alice")) is GrantKind.AUTHENTICATED_USER


def test_an_address_not_gathered_yet_is_asked_for_only_when_it_matters() -> None:
    def early(address: str, **more: Any) -> object:
        return decide(
            Facts(more.pop("role", Role.RELAY), Unknown.NOT_YET, parse_mailbox(address.encode()), **more), RULES
        )

    assert early("user@example.net") is NEED_CLIENT
    assert early("a%b@example.org") is NEED_CLIENT
    assert early("user@example.org", recipients_accepted=100) is NEED_CLIENT
    assert kind(early("user@example.org")) is GrantKind.LOCAL_DELIVERY
    assert kind(early("user@example.net", login="alice")) is GrantKind.AUTHENTICATED_USER
    assert code(early("user@example.net", role=Role.SUBMISSION)) == "530 5.7.0 login-required"


def test_postmaster_without_a_domain_is_always_accepted() -> None:
    for rules in (RULES, with_relay(RULES, False), compile_rules(), compile_rules(recipients=[])):
        for path in (POSTMASTER, Path(b"PostMaster", "")):
            assert kind(rcpt(STRANGER, path, rules)) is GrantKind.LOCAL_DELIVERY


@pytest.mark.parametrize("local_part", [b"", b"user", b"postmaster2"])
@pytest.mark.parametrize("client", [STRANGER, TRUSTED])
def test_no_other_address_goes_without_a_domain(client: str, local_part: bytes) -> None:
    assert code(rcpt(client, Path(local_part, ""))) == "550 5.1.3 no-such-recipient"


@pytest.mark.parametrize("local_part", [b"user@example.net", b"postmaster%example.net"])
def test_a_route_without_a_domain_is_refused(local_part: bytes) -> None:
    assert code(rcpt(STRANGER, Path(local_part, ""))) == "550 5.7.1 routing-trick"
    assert code(rcpt(TRUSTED, Path(local_part, ""))) == "550 5.1.3 no-such-recipient"


LISTED = compile_rules(
    local_domains=["example.org", "whole.example"],
    relay_domains=["dept.example.org"],
    trusted_networks=["10.0.0.0/8"],
    recipients=["Alice@Example.org", "bob@dept.example.org", "@whole.example", "carol"],
    aliases=[("root", ["alice@example.org"]), ("info@dept.example.org", ["bob@dept.example.org"])],
)


@pytest.mark.parametrize(
    "address",
    [
        "alice@example.org",
        "ALICE@example.org",
        "bob@dept.example.org",
        "anyone@whole.example",
        "carol@example.org",
        "root@example.org",
        "info@dept.example.org",
        "postmaster@example.org",
        "Postmaster@dept.example.org",
    ],
)
def test_a_listed_recipient_is_valid(address: str) -> None:
    assert isinstance(rcpt(STRANGER, address, LISTED), Grant)


@pytest.mark.parametrize(
    "address",
    [
        "bob@example.org",
        "alice@dept.example.org",
        "carol@dept.example.org",
        "root@dept.example.org",
        "alice+x@example.org",
    ],
)
@pytest.mark.parametrize("client", [STRANGER, TRUSTED])
def test_a_recipient_that_is_not_listed_is_refused_to_everyone(client: str, address: str) -> None:
    assert code(rcpt(client, address, LISTED)) == "550 5.1.1 no-such-recipient"


def test_the_list_says_nothing_of_other_domains() -> None:
    assert kind(rcpt(TRUSTED, "anyone@example.net", LISTED)) is GrantKind.TRUSTED_NETWORK


def test_an_empty_list_leaves_postmaster_alone() -> None:
    rules = compile_rules(local_domains=["example.org"], recipients=[])
    assert code(rcpt(STRANGER, "user@example.org", rules)) == "550 5.1.1 no-such-recipient"
    assert kind(rcpt(STRANGER, "postmaster@example.org", rules)) is GrantKind.LOCAL_DELIVERY


@pytest.mark.parametrize(("client", "most"), [(STRANGER, 100), (TRUSTED, 1000), ("10.0.0.1", 100)])
def test_there_is_room_for_so_many_recipients(client: str, most: int) -> None:
    assert isinstance(rcpt(client, "user@example.org", recipients_accepted=most - 1), Grant)
    assert code(rcpt(client, "user@example.org", recipients_accepted=most)) == "452 4.5.3 too-many-recipients"
    assert code(rcpt(client, POSTMASTER, recipients_accepted=most)) == "452 4.5.3 too-many-recipients"


def test_a_refusal_comes_before_the_count() -> None:
    assert code(rcpt(STRANGER, "user@example.net", recipients_accepted=100)) == "550 5.7.1 relay-denied"


def test_suspended_networks_give_no_right_and_their_clients_are_told_so() -> None:
    rules = with_networks(RULES, suspended=True)
    assert code(rcpt(TRUSTED, "a@elsewhere.test", rules)) == "450 4.7.1 networks-suspended"
    assert code(rcpt("10.0.0.1", "a@elsewhere.test", rules)) == "550 5.7.1 relay-denied"
    assert code(rcpt(STRANGER, "a@elsewhere.test", rules)) == "550 5.7.1 relay-denied"
    assert code(rcpt(TRUSTED, "a%elsewhere.test@example.org", rules)) == "550 5.7.1 routing-trick"
    assert not rules.trusts(ip_address(TRUSTED))


def test_suspended_networks_leave_all_other_rights_alone() -> None:
    rules = with_networks(RULES, suspended=True)
    assert kind(rcpt(TRUSTED, "a@example.org", rules)) is GrantKind.LOCAL_DELIVERY
    assert kind(rcpt(TRUSTED, "a@dept.example.org", rules)) is GrantKind.RELAY_DOMAIN
    assert kind(rcpt(TRUSTED, "a@elsewhere.test", rules, login="anna")) is GrantKind.AUTHENTICATED_USER
    assert kind(rcpt(TRUSTED, "a@elsewhere.test", rules, role=Role.LOCAL, local_uid=7)) is GrantKind.LOCAL_USER


def test_relay_off_leaves_only_delivery_to_local_domains() -> None:
    off = with_relay(RULES, False)
    assert kind(rcpt(STRANGER, "user@example.org", off)) is GrantKind.LOCAL_DELIVERY
    assert code(rcpt(STRANGER, "user@dept.example.org", off)) == "450 4.7.1 relay-off"
    assert code(rcpt(TRUSTED, "user@example.net", off)) == "450 4.7.1 relay-off"
    assert code(rcpt(STRANGER, "user@example.net", off, login="alice")) == "450 4.7.1 relay-off"
    assert code(decide(Facts(Role.LOCAL, Unknown.NOT_LEARNABLE, Path(b"a", "x.example"), local_uid=0), off)) == (
        "450 4.7.1 relay-off"
    )
    assert code(rcpt(STRANGER, "user@example.net", off)) == "550 5.7.1 relay-denied"
    assert with_relay(off, True) == RULES


def test_the_nearest_pattern_says_what_a_domain_is_to_us() -> None:
    rules = compile_rules(local_domains=[".example.org"], relay_domains=["dept.example.org"])
    assert kind(rcpt(STRANGER, "user@dept.example.org", rules)) is GrantKind.RELAY_DOMAIN
    assert kind(rcpt(STRANGER, "user@x.dept.example.org", rules)) is GrantKind.LOCAL_DELIVERY


def test_a_grant_names_the_rule_and_a_refusal_says_what_to_do() -> None:
    assert rcpt(TRUSTED, "user@example.net").reason.words == "the client is in the trusted network 10.0.0.0/8"  # type: ignore[attr-defined]
    assert rcpt(STRANGER, "u@x.branch.example.org").reason.words == "local_domains holds .branch.example.org"  # type: ignore[attr-defined]
    refusal = rcpt(STRANGER, "user@example.net")
    assert isinstance(refusal, Refusal)
    assert refusal.reply.encode() == (
        b"550 5.7.1 Relaying to example.net is denied for 203.0.113.9; log in, or use the mail server of your own network\r\n"
    )


def test_a_reply_holds_no_octet_of_the_client_that_could_break_it() -> None:
    for local_part in (b"a\r\nb", b"\x00", "bücher".encode(), b"\xff", b'"\\'):
        answer = rcpt(
            STRANGER, Path(local_part, "example.org"), compile_rules(local_domains=["example.org"], recipients=[])
        )
        assert isinstance(answer, Refusal)
        line = answer.reply.encode()
        assert line.count(b"\r\n") == 1
        assert line.isascii()
        assert all(32 <= octet < 127 for octet in line[:-2])


def test_our_own_notifications_go_anywhere_but_not_to_nobody() -> None:
    for path in (Path(b"user", "example.net"), Path(b"user", "example.org"), POSTMASTER, Path(b"a%b", "example.net")):
        for rules in (RULES, with_relay(RULES, False)):
            assert kind(grant_notification(path, rules)) is GrantKind.OWN_NOTIFICATION
    assert code(grant_notification(NULL_PATH, RULES)) == "550 5.1.3 no-such-recipient"


def test_a_reverse_path_of_a_stranger_is_no_route_through_our_next_hops() -> None:
    for domain in ("dept.example.org", "example.org"):
        assert code(grant_notification(Path(b"victim%example.net", domain), RULES)) == "550 5.7.1 routing-trick"


def test_a_stored_grant_comes_back_as_it_was() -> None:
    granted = rcpt(TRUSTED, "user@example.net")
    assert isinstance(granted, Grant)
    assert restore_grant(str(granted.kind), str(granted.reason.slug), granted.reason.words) == granted
    with pytest.raises(ValueError, match="wizardry"):
        restore_grant("wizardry", str(Slug.TRUSTED_NETWORK), "")


def test_cron_mail_to_root_at_this_host_follows_its_alias_though_the_host_is_no_local_domain() -> None:
    rules = compile_rules(own_name="vm.example", aliases=[("root", ["admin@example.net"])])
    facts = Facts(Role.LOCAL, Unknown.NOT_LEARNABLE, Path(b"root", "vm.example"), local_uid=0)
    grant = decide(facts, rules)
    assert isinstance(grant, Grant)
    expanded = expand(facts.forward_path, grant, rules)
    assert isinstance(expanded, tuple)
    assert [(str(path), one.kind) for path, one in expanded] == [("admin@example.net", GrantKind.FORWARDING)]
    stranger = Facts(Role.RELAY, ip_address("192.0.2.7"), facts.forward_path)
    assert isinstance(decide(stranger, rules), Refusal)
