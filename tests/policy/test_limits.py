"""Token buckets over a given clock."""

from ipaddress import ip_address

import pytest

from posthouse.policy.limits import Allowance, Bucket, Limiter, limit_key, refill, seconds_until

FIVE = Allowance(burst=5, per_second=0.5)


def test_a_burst_is_allowed_and_then_refilled_by_time() -> None:
    limiter = Limiter(FIVE)
    assert [limiter.try_take("a", 10.0) for _ in range(6)] == [True] * 5 + [False]
    assert limiter.seconds_until("a", 10.0) == pytest.approx(2.0)
    assert not limiter.try_take("a", 11.9)
    assert limiter.try_take("a", 12.0)
    assert limiter.try_take("b", 12.0)


def test_what_has_happened_is_charged_into_debt_but_not_without_bound() -> None:
    limiter = Limiter(FIVE)
    for _ in range(100):
        limiter.charge("a", 0.0)
    assert limiter.seconds_until("a", 0.0) == pytest.approx(12.0)
    assert limiter.try_take("a", 12.0)


def test_a_clock_that_goes_back_refills_nothing() -> None:
    assert refill(Bucket(1.0, 100.0), FIVE, 50.0) == Bucket(1.0, 100.0)
    assert seconds_until(Bucket(0.0, 100.0), Allowance(1, 0), 200.0) == float("inf")


def test_the_table_is_bounded_and_forgets_the_longest_untouched() -> None:
    limiter = Limiter(FIVE, most=3)
    for key in "abc":
        limiter.charge(key, 0.0, 5)
    limiter.charge("a", 0.0)
    limiter.charge("d", 0.0)
    assert len(limiter) == 3
    assert limiter.try_take("b", 0.0)
    assert not limiter.try_take("a", 0.0)


def test_an_ipv6_subscriber_is_counted_by_his_network() -> None:
    assert limit_key(ip_address("2001:db8:1:2:3::4")) == limit_key(ip_address("2001:db8:1:2::9")) == "2001:db8:1:2::/64"
    assert limit_key(ip_address("::ffff:192.0.2.1")) == limit_key(ip_address("192.0.2.1")) == "192.0.2.1"
