"""When to try again, as arithmetic: from `first` growing by `factor` to `longest`, spread by jitter."""

import msgspec


class RetryPlan(msgspec.Struct, frozen=True):
    """[retry] in seconds: the first wait, the longest, the factor between, when to give up, when to send a delay notice."""

    first: float = 300.0
    longest: float = 4 * 3600.0
    factor: float = 1.7
    give_up: float = 5 * 86400.0
    delay_notice: float = 4 * 3600.0


def wait_after(attempts: int, plan: RetryPlan, chance: float) -> float:
    """Seconds to wait after the `attempts`-th failed attempt (1 is the first).

    `chance` in [0, 1) spreads the waits by up to a fifth to either side, so that what failed together does not return together.
    """
    exponent = min(max(attempts - 1, 0), 64)  # bounds the power: at any sane factor `longest` is reached long before
    wait = min(plan.longest, plan.first * plan.factor**exponent)
    return float(wait * (0.8 + 0.4 * chance))


def is_expired(arrived_at: int, now: int, plan: RetryPlan) -> bool:
    """The message has waited longer than `give_up`. Times are milliseconds since 1970."""
    return now - arrived_at >= plan.give_up * 1000


def is_notice_due(arrived_at: int, now: int, notices: int, plan: RetryPlan) -> bool:
    """The sender should hear that the message is delayed (once)."""
    return notices == 0 and plan.delay_notice > 0 and now - arrived_at >= plan.delay_notice * 1000
