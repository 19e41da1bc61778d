import itertools

from hypothesis import given
from hypothesis import strategies as st

from posthouse.relay.backoff import RetryPlan, is_expired, is_notice_due, wait_after

PLAN = RetryPlan()


def test_first_wait_is_five_minutes_and_the_longest_four_hours() -> None:
    assert wait_after(1, PLAN, 0.5) == 300
    assert wait_after(50, PLAN, 0.5) == 4 * 3600


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_every_wait_is_within_a_fifth_of_its_step(attempts: int, chance: float) -> None:
    middle = wait_after(attempts, PLAN, 0.5)
    assert 0.79 * middle <= wait_after(attempts, PLAN, chance) <= 1.21 * middle


def test_waits_never_shrink() -> None:
    waits = [wait_after(attempts, PLAN, 0.5) for attempts in range(1, 30)]
    assert all(earlier <= later for earlier, later in itertools.pairwise(waits))


def test_a_message_expires_after_five_days_and_not_a_moment_before() -> None:
    five_days = 5 * 86400 * 1000
    assert not is_expired(1000, 1000 + five_days - 1, PLAN)
    assert is_expired(1000, 1000 + five_days, PLAN)


def test_one_delay_notice_after_four_hours() -> None:
    four_hours = 4 * 3600 * 1000
    assert not is_notice_due(0, four_hours - 1, 0, PLAN)
    assert is_notice_due(0, four_hours, 0, PLAN)
    assert not is_notice_due(0, four_hours * 2, 1, PLAN)
    assert not is_notice_due(0, four_hours, 0, RetryPlan(delay_notice=0))
