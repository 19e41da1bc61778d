"""Clocks of the queue: the wall clock, and one that does not jump when the wall clock is set."""

import time

SLEW_MS = 60_000
"""A step up to this size is followed at once: it harms no wait."""


def wall_clock() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class SteadyClock:
    """Milliseconds since 1970 by the wall clock, until that is set by more than a minute; then by the time that has passed.

    Ages and waits are differences of stored times, so a clock that jumps ten years on would let all mail expire, and one
    that jumps back would let it wait for years. Whoever owns the queue looks at `jump` now and then, puts right what is
    stored, and says `follow`; until then this clock goes on as if nothing had happened.
    """

    __slots__ = ("_offset",)

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()

    def __call__(self) -> int:
        """The time."""
        wall, steady = time.time_ns(), time.monotonic_ns() + self._offset
        if abs(wall - steady) > SLEW_MS * 1_000_000:
            return steady // 1_000_000
        self._offset += wall - steady
        return wall // 1_000_000

    @property
    def jump(self) -> int:
        """By how many milliseconds the wall clock has been set since it was last followed; 0 when it has not."""
        by = (time.time_ns() - time.monotonic_ns() - self._offset) // 1_000_000
        return by if abs(by) > SLEW_MS else 0

    def follow(self) -> None:
        """From now on by the wall clock as it has been set."""
        self._offset = time.time_ns() - time.monotonic_ns()
