"""The lab: what its window grants, that nothing beyond it is granted, and which shapes there may not be."""

import math
from ipaddress import ip_address

import pytest

from posthouse.mail.grant import Grant, GrantKind
from posthouse.mail.reason import Slug
from posthouse.policy import decide as decide_module
from posthouse.policy import proof
from posthouse.policy.decide import NEED_CLIENT, Refusal, decide
from posthouse.policy.facts import Facts, Role, Unknown
from posthouse.policy.gateways import Gateway, masked_openings
from posthouse.policy.lab import LONGEST_LAB_SECONDS, LabFault, check_end, make_lab
from posthouse.policy.matrix import matrix_changes, relay_matrix
from posthouse.policy.proof import OpeningKind, find_opening
from posthouse.policy.rules import RulesError, compile_rules, with_relay
from posthouse.smtp.address import POSTMASTER, Path

END = 1_800_000_000.0
NAME = "127.0.0.1:2526"
LAB = (NAME, ("127.0.0.0/8", "192.0.2.0/28"), ("collector.test", ".labs.test", "[192.0.2.1]"), END)
RULES = compile_rules(
    labs=[LAB], local_domains=["here.test"], trusted_networks=["198.51.100.0/24"], gateways_as_strangers=["192.0.2.1"]
)
INSIDE, OUTSIDE = ip_address("127.0.0.5"), ip_address("203.0.113.9")


def ask(path: Path, client: object = INSIDE, now: float = END - 1, login: str = "", lab: str = NAME) -> object:
    return decide(Facts(Role.LAB, client, path, login, lab=lab, now=now), RULES)  # type: ignore[arg-type]


@pytest.mark.parametrize("domain", ["collector.test", "a.labs.test", "b.a.labs.test", "[192.0.2.1]"])
def test_lab_grants_its_destinations_to_those_inside_until_its_end(domain: str) -> None:
    answer = ask(Path(b"anyone", domain))
    assert isinstance(answer, Grant)
    assert answer.kind is GrantKind.LAB_WINDOW
    assert "open on purpose, for 127.0.0.0/8, 192.0.2.0/28 to" in answer.reason.words
    assert "until 2027-01-15 08:00 UTC" in answer.reason.words


@pytest.mark.parametrize("now", [END, END + 1, math.inf, math.nan])
def test_lab_refuses_everything_after_its_end_and_when_the_time_is_not_known(now: float) -> None:
    for path in (Path(b"anyone", "collector.test"), Path(b"a", "here.test"), POSTMASTER):
        answer = ask(path, now=now)
        assert isinstance(answer, Refusal)
        assert answer.reason.slug is Slug.LAB_OVER


@pytest.mark.parametrize("login", ["", "anna"])
def test_lab_refuses_strangers_and_what_is_named_a_stranger_even_with_a_login(login: str) -> None:
    for client in (
        OUTSIDE,
        ip_address("192.0.2.16"),
        ip_address("192.0.2.1"),
        ip_address("198.51.100.7"),
        ip_address("::2"),
    ):
        answer = ask(Path(b"anyone", "collector.test"), client, login=login)
        assert isinstance(answer, Refusal)
        assert answer.reply.code == 550


def test_lab_refuses_an_unknown_client_and_asks_for_one_that_can_be_known() -> None:
    assert isinstance(ask(Path(b"a", "collector.test"), Unknown.NOT_LEARNABLE), Refusal)
    assert ask(Path(b"a", "collector.test"), Unknown.NOT_YET) is NEED_CLIENT


@pytest.mark.parametrize(
    "path",
    [
        Path(b"a", "elsewhere.test"),
        Path(b"a", "labs.test"),
        Path(b"a", "xcollector.test"),
        Path(b"a", "collector.test.elsewhere.test"),
        Path(b"a", "here.test"),
        POSTMASTER,
        Path(b"a", ""),
        Path(b"a%elsewhere.test", "collector.test"),
        Path(b"elsewhere.test!a", "collector.test"),
        Path(b"a@elsewhere.test", "collector.test"),
        Path(b"@elsewhere.test:a", "collector.test"),
    ],
)
def test_lab_relays_nowhere_but_to_its_destinations(path: Path) -> None:
    assert isinstance(ask(path), Refusal)


def test_listener_without_a_window_grants_nothing() -> None:
    assert isinstance(ask(Path(b"a", "collector.test"), lab=""), Refusal)
    assert isinstance(ask(Path(b"a", "collector.test"), lab="127.0.0.1:9"), Refusal)


def test_relay_off_closes_labs_and_recipients_are_limited() -> None:
    facts = Facts(Role.LAB, INSIDE, Path(b"a", "collector.test"), lab=NAME, now=END - 1)
    assert decide(facts, with_relay(RULES, enabled=False)).reply.code == 450  # type: ignore[union-attr]
    many = Facts(Role.LAB, INSIDE, Path(b"a", "collector.test"), "", -1, 100, NAME, END - 1)
    assert decide(many, RULES).reply.code == 452  # type: ignore[union-attr]


def test_lab_window_opens_nothing_on_other_listeners() -> None:
    for role in (Role.RELAY, Role.SUBMISSION):
        answer = decide(Facts(role, INSIDE, Path(b"a", "collector.test"), lab=NAME, now=END - 1), RULES)
        assert isinstance(answer, Refusal)


def test_rules_with_a_lab_in_right_shape_are_closed() -> None:
    assert find_opening(RULES) is None


@pytest.mark.parametrize("broken", ["ends", "networks", "destinations", "tricks", "exceptions"])
def test_fault_in_a_labs_decision_shows_as_an_opening(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = type(RULES.labs[0])
    if broken == "ends":
        monkeypatch.setattr(lab, "is_over", lambda _self, _now: False)
    if broken == "networks":
        monkeypatch.setattr(lab, "admits", lambda _self, client: not isinstance(client, Unknown))
    if broken == "exceptions":
        monkeypatch.setattr(
            lab,
            "admits",
            lambda self, client: (
                not isinstance(client, Unknown)
                and any(client.version == net.version and client in net for net in self.networks.networks)
            ),
        )
    if broken == "destinations":
        monkeypatch.setattr(type(RULES.labs[0].destinations), "lookup", lambda _self, domain: domain)
    if broken == "tricks":
        monkeypatch.setattr(decide_module, "has_routing_trick", lambda _path: False)
    openings = list(proof._granted_beyond_labs(RULES))
    assert openings
    assert openings[0].kind is OpeningKind.LAB_TOO_WIDE


@pytest.mark.parametrize(
    ("networks", "destinations", "words"),
    [
        (("0.0.0.0/0",), ("a.test",), "too wide"),
        (("::/0",), ("a.test",), "too wide"),
        (("192.0.2.0/23",), ("a.test",), "host bits|too wide|wider"),
        (("8.8.0.0/16",), ("a.test",), "too wide"),
        (("2001:db8::/32",), ("a.test",), "too wide"),
        (("126.0.0.0/7",), ("a.test",), "too wide"),
        (("10.0.0.0/7",), ("a.test",), "too wide"),
        (("127.0.0.1",), ("*",), "to everywhere"),
        (("127.0.0.1",), (".com",), "to everywhere"),
        (("127.0.0.1",), ("com",), "to everywhere"),
        ((), ("a.test",), "names no networks"),
        (("127.0.0.1",), (), "names no networks or no destinations"),
    ],
)
def test_lab_of_any_other_shape_makes_no_rules(
    networks: tuple[str, ...], destinations: tuple[str, ...], words: str
) -> None:
    with pytest.raises(RulesError, match=words):
        compile_rules(labs=[(NAME, networks, destinations, END)])


@pytest.mark.parametrize("network", ["10.0.0.0/8", "127.0.0.0/8", "fc00::/7", "203.0.113.0/24", "2001:db8::/64", "::1"])
def test_private_and_small_networks_may_use_a_lab(network: str) -> None:
    assert make_lab(NAME, [network], ["a.test"], END).admits(ip_address(network.partition("/")[0]))


def test_two_labs_on_one_listener_and_a_lab_without_end_make_no_rules() -> None:
    with pytest.raises(RulesError, match="two labs"):
        compile_rules(labs=[LAB, LAB])
    with pytest.raises(RulesError, match="no end"):
        compile_rules(labs=[(NAME, ("127.0.0.1",), ("a.test",), math.inf)])


def test_end_is_ahead_and_at_most_thirty_days() -> None:
    lab = RULES.labs[0]
    check_end(lab, END - 1)
    check_end(lab, END - LONGEST_LAB_SECONDS)
    with pytest.raises(LabFault, match="ended at"):
        check_end(lab, END)
    with pytest.raises(LabFault, match="30 days"):
        check_end(lab, END - LONGEST_LAB_SECONDS - 1)


def test_gateway_in_a_labs_network_is_an_opening_until_it_is_named() -> None:
    gateway = Gateway(ip_address("192.0.2.2"), "the default gateway of this machine (on eth0)")
    (masked,) = masked_openings(RULES, [gateway])
    assert masked.sentence.startswith("The lab network 192.0.2.0/28 holds 192.0.2.2")
    named = compile_rules(labs=[LAB], gateways_as_strangers=["192.0.2.2"])
    assert masked_openings(named, [gateway]) == []


def test_matrix_shows_the_lab_and_its_changes() -> None:
    rows = [(row.who, row.where, row.granted, row.answer) for row in relay_matrix(RULES).rows if "lab" in row.who]
    assert (
        f"127.0.0.0/8 at the lab {NAME}",
        "collector.test",
        True,
        "open, on purpose, until 2027-01-15 08:00 UTC",
    ) in rows
    assert (f"strangers at the lab {NAME}", "anywhere", False, "refused: 550 5.7.1") in rows
    assert all(not granted for _, where, granted, _ in rows if where == "anywhere else")
    without = compile_rules(local_domains=["here.test"])
    opened = [line for line in matrix_changes(without, RULES) if "lab" in line]
    assert opened == [
        f"the lab on {NAME} is now open, on purpose, for 127.0.0.0/8, 192.0.2.0/28 to collector.test, .labs.test, [192.0.2.1], "
        "until 2027-01-15 08:00 UTC"
    ]
    assert f"the lab on {NAME} is closed" in matrix_changes(RULES, without)
