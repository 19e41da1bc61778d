"""How often a login may fail, counted before the password is looked at."""

import pytest

from posthouse.policy.logins import ACCOUNT_FAILURES, ADDRESS_FAILURES, Answer, LoginLimits, LoginTry, Verdict

JANE = LoginTry("192.0.2.1", "jane")


def fail(limits: LoginLimits, one: LoginTry, times: int, now: float = 0.0) -> list[Answer]:
    answers = []
    for _ in range(times):
        answer, _, counts = limits.begin(one, now)
        answers.append(answer)
        if answer is Answer.GO:
            limits.end(one, Verdict.WRONG, now, account_counts=counts)
    return answers


def test_ten_failures_from_an_address_are_looked_at_and_then_one_a_minute() -> None:
    limits = LoginLimits()
    assert fail(limits, JANE, 12) == [Answer.GO] * 10 + [Answer.REFUSED] * 2
    assert limits.begin(JANE, 0.0)[1] == pytest.approx(60)
    assert fail(limits, JANE, 2, now=61.0) == [Answer.GO, Answer.REFUSED]


def test_right_logins_cost_nothing() -> None:
    limits = LoginLimits()
    for _ in range(50):
        answer, _, counts = limits.begin(JANE, 0.0)
        assert answer is Answer.GO
        limits.end(JANE, Verdict.RIGHT, 0.0, account_counts=counts)


def test_a_try_that_depends_on_others_under_way_waits_for_their_end() -> None:
    limits = LoginLimits()
    begun = [limits.begin(JANE, 0.0) for _ in range(12)]
    assert [answer for answer, _, _ in begun] == [Answer.GO] * 10 + [Answer.LATER] * 2
    for _, _, counts in begun[:9]:
        limits.end(JANE, Verdict.WRONG, 0.0, account_counts=counts)
    assert limits.begin(JANE, 0.0)[0] is Answer.LATER
    limits.end(JANE, Verdict.RIGHT, 0.0, account_counts=True)
    assert limits.begin(JANE, 0.0)[0] is Answer.GO


def test_an_account_guessed_from_everywhere_is_closed_to_new_addresses_and_open_to_its_owner() -> None:
    limits = LoginLimits()
    home = LoginTry("198.51.100.7", "jane")
    _, _, counts = limits.begin(home, 0.0)
    limits.end(home, Verdict.RIGHT, 0.0, account_counts=counts)
    answers = [answer for n in range(150) for answer in fail(limits, LoginTry(f"192.0.2.{n}", "jane"), 1)]
    assert answers.count(Answer.GO) == ACCOUNT_FAILURES.burst
    assert fail(limits, home, 1) == [Answer.GO]
    assert fail(limits, LoginTry("192.0.2.200", "joe"), 1) == [Answer.GO]


def test_an_address_that_is_known_to_an_account_has_the_limit_of_any_address() -> None:
    limits = LoginLimits()
    _, _, counts = limits.begin(JANE, 0.0)
    limits.end(JANE, Verdict.RIGHT, 0.0, account_counts=counts)
    assert fail(limits, JANE, 20).count(Answer.GO) == ADDRESS_FAILURES.burst
