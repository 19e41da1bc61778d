"""Who may be tested: the decision, and what is remembered for it."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import pytest

from posthouse.policy.networks import NetworkSet
from posthouse.tester.consent import (
    DAY_SECONDS,
    PROOF_SECONDS,
    Consent,
    ConsentRules,
    Denial,
    Ground,
    Method,
    Obstacle,
    read_do_not_test,
)
from posthouse.tester.machine import own_addresses
from posthouse.tester.office import Office, OfficeFault
from posthouse.tester.token import TokenKey, new_key

KEY = TokenKey(b"k" * 32)
PUBLIC, OTHER = ip_address("9.9.9.9"), ip_address("9.9.9.10")


class Clock:
    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def rules(
    never: tuple[str, ...] = (), own: tuple[str, ...] = (), per_target: int = 3, per_day: int = 5
) -> ConsentRules:
    return ConsentRules(
        NetworkSet.parse(own), frozenset({ip_address("192.0.2.7")}), read_do_not_test(never), per_target, per_day
    )


def office(path: Path, said: ConsentRules | None = None, key: TokenKey = KEY, clock: Clock | None = None) -> Office:
    return Office(path / "tester" / "consent.db", lambda: said or rules(), lambda: key, clock or Clock())


@pytest.mark.parametrize(
    ("address", "ground"),
    [
        ("127.0.0.1", Ground.LOOPBACK),
        ("127.9.9.9", Ground.LOOPBACK),
        ("::1", Ground.LOOPBACK),
        ("::ffff:127.0.0.1", Ground.LOOPBACK),
        ("192.0.2.7", Ground.MACHINE),
        ("10.1.2.3", Ground.OWN_NETWORK),
        ("9.9.9.9", Ground.OWN_NETWORK),
    ],
)
def test_what_is_ours_may_be_tested(address: str, ground: Ground, tmp_path: Path) -> None:
    answer = office(tmp_path, rules(own=("10.0.0.0/8", "9.9.9.0/28"))).admit("host", ip_address(address))
    assert isinstance(answer, Consent)
    assert answer.ground is ground


@pytest.mark.parametrize(
    "address", ["9.9.9.9", "10.1.2.3", "192.0.2.8", "2620:fe::9", "::ffff:9.9.9.9", "169.254.1.1", "0.0.0.0"]
)
def test_what_is_not_ours_may_not_be_tested_and_is_told_how_to_prove(address: str, tmp_path: Path) -> None:
    answer = office(tmp_path).admit("mx.example.org", ip_address(address))
    assert isinstance(answer, Denial)
    assert answer.obstacle is Obstacle.NO_PROOF
    assert "--prove dns" in answer.words


def test_loopback_needs_no_place_to_remember(tmp_path: Path) -> None:
    (tmp_path / "tester").write_text("a file where the directory should be")
    here = office(tmp_path)
    assert isinstance(here.admit("localhost", ip_address("127.0.0.1")), Consent)
    denied = here.admit("mx.example.org", PUBLIC)
    assert isinstance(denied, Denial)
    assert denied.obstacle is Obstacle.NOT_KEPT


def test_list_of_what_is_never_tested_stands_above_everything(tmp_path: Path) -> None:
    never = rules(
        ("9.9.9.9", "127.0.0.2 # a remark", "# only a remark", "example.org", ".secret.example", ""), ("9.0.0.0/16",)
    )
    here = office(tmp_path, never)
    here.record_proof("mx.example.com", OTHER, Method.DNS)
    for host, address in (
        ("anything", PUBLIC),
        ("localhost", ip_address("127.0.0.2")),
        ("localhost", ip_address("::ffff:127.0.0.2")),
        ("EXAMPLE.org.", OTHER),
        ("deep.secret.example", OTHER),
    ):
        for is_caller in (False, True):
            answer = here.admit(host, address, is_caller=is_caller)
            assert isinstance(answer, Denial), host
            assert answer.obstacle is Obstacle.DO_NOT_TEST
    assert isinstance(here.admit("mx.example.com", OTHER), Consent)
    assert isinstance(here.admit("secret.example", OTHER), Consent)


def test_bad_entry_of_the_list_is_named() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.1/8.*neither"):
        read_do_not_test(["10.0.0.1/8"])


def test_proof_counts_for_its_address_and_its_time_whatever_the_name(tmp_path: Path) -> None:
    clock = Clock()
    here = office(tmp_path, clock=clock)
    here.record_proof("mx.example.org", PUBLIC, Method.BANNER)
    for name in ("mx.example.org", "other.example"):
        answer = office(tmp_path, clock=clock).look(name, PUBLIC)
        assert isinstance(answer, Consent)
        assert answer.ground is Ground.PROOF
    assert isinstance(here.look("mx.example.org", OTHER), Denial)
    clock.now += PROOF_SECONDS
    assert isinstance(here.look("mx.example.org", PUBLIC), Denial)


def test_forged_or_moved_proof_counts_for_nothing(tmp_path: Path) -> None:
    here = office(tmp_path)
    here.record_proof("mx.example.org", PUBLIC, Method.DNS)
    assert isinstance(office(tmp_path, key=new_key()).look("mx.example.org", PUBLIC), Denial)
    with sqlite3.connect(tmp_path / "tester" / "consent.db") as database:
        database.execute("UPDATE proof SET address = ?", (str(OTHER),))
    assert isinstance(here.look("mx.example.org", OTHER), Denial)
    with sqlite3.connect(tmp_path / "tester" / "consent.db") as database:
        database.execute("UPDATE proof SET address = ?, expires_at = 1e12", (str(PUBLIC),))
    assert isinstance(here.look("mx.example.org", PUBLIC), Denial)


def test_caller_may_have_its_own_address_tested_within_limits(tmp_path: Path) -> None:
    here = office(tmp_path)
    answers = [here.admit(str(PUBLIC), PUBLIC, is_caller=True) for _ in range(4)]
    assert [isinstance(one, Consent) for one in answers] == [True, True, True, False]
    assert answers[0].ground is Ground.CALLER  # type: ignore[union-attr]
    assert answers[3].obstacle is Obstacle.TARGET_LIMIT  # type: ignore[union-attr]


def test_limits_hold_per_target_and_in_all_for_a_day_and_over_restarts(tmp_path: Path) -> None:
    clock = Clock()
    for number in range(5):
        address = ip_address(f"9.9.8.{number // 3}")
        assert isinstance(office(tmp_path, clock=clock).admit("x", address, is_caller=True), Consent)
    here = office(tmp_path, clock=clock)
    sixth = here.admit("x", ip_address("9.9.8.7"), is_caller=True)
    assert isinstance(sixth, Denial)
    assert sixth.obstacle is Obstacle.DAY_LIMIT
    assert here.admit("x", ip_address("9.9.8.0"), is_caller=True).obstacle is Obstacle.TARGET_LIMIT  # type: ignore[union-attr]
    assert isinstance(here.admit("localhost", ip_address("127.0.0.1")), Consent), "this machine is not counted"
    clock.now += DAY_SECONDS + 1
    assert isinstance(here.admit("x", ip_address("9.9.8.7"), is_caller=True), Consent)


def test_many_testers_at_once_keep_within_the_limit(tmp_path: Path) -> None:
    def admit(_: int) -> bool:
        return isinstance(office(tmp_path).admit("x", PUBLIC, is_caller=True), Consent)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(admit, range(16))) == 3


def test_looking_counts_nothing(tmp_path: Path) -> None:
    here = office(tmp_path)
    assert all(isinstance(here.look("x", PUBLIC, is_caller=True), Consent) for _ in range(10))


def test_broken_memory_and_missing_key_allow_nothing(tmp_path: Path) -> None:
    here = office(tmp_path)
    here.record_proof("x", PUBLIC, Method.DNS)
    (tmp_path / "tester" / "consent.db").write_bytes(b"no database" * 1000)
    denied = here.look("x", PUBLIC)
    assert isinstance(denied, Denial)
    assert denied.obstacle is Obstacle.NOT_KEPT
    with pytest.raises(OfficeFault, match="run this as the user"):
        here.challenge("dns x")


def test_rules_that_cannot_be_read_allow_nothing_not_even_loopback(tmp_path: Path) -> None:
    def unreadable() -> ConsentRules:
        raise OfficeFault("the list can't be read")

    here = Office(tmp_path / "consent.db", unreadable, lambda: KEY)
    denied = here.admit("localhost", ip_address("127.0.0.1"))
    assert isinstance(denied, Denial)
    assert "the list can't be read" in denied.words


def test_challenge_stays_the_same_while_it_is_valid(tmp_path: Path) -> None:
    clock = Clock()
    here = office(tmp_path, clock=clock)
    first = here.challenge("dns a")
    clock.now += 10 * DAY_SECONDS
    assert here.challenge("dns a") == first != here.challenge("dns b")
    clock.now += 4 * DAY_SECONDS
    assert here.challenge("dns a") != first


def test_this_machines_addresses_are_read_from_proc() -> None:
    assert ip_address("127.0.0.1") in own_addresses()
    assert own_addresses(Path("/nowhere")) == frozenset()
