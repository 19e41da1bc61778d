"""A clock that goes on when the wall clock is set, until it is told to follow."""

import time

from posthouse.spool.clock import SLEW_MS, SteadyClock

MINUTE_NS = SLEW_MS * 1_000_000


def test_it_follows_small_steps_and_not_large_ones(monkeypatch):
    wall = [1_000_000_000_000_000_000]
    monkeypatch.setattr(time, "time_ns", lambda: wall[0])
    monkeypatch.setattr(time, "monotonic_ns", lambda: 5_000_000_000)
    clock = SteadyClock()
    start = clock()
    wall[0] += MINUTE_NS - 1_000_000
    assert clock() == start + SLEW_MS - 1
    assert clock.jump == 0
    wall[0] += 10 * MINUTE_NS
    assert clock() == start + SLEW_MS - 1
    assert clock.jump == 10 * SLEW_MS
    clock.follow()
    assert clock() == start + 11 * SLEW_MS - 1
    assert clock.jump == 0
    wall[0] -= 1000 * MINUTE_NS
    assert clock() == start + 11 * SLEW_MS - 1
    assert clock.jump == -1000 * SLEW_MS
