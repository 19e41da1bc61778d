"""How often: so many in an hour for one, and so many for all. Arithmetic over a clock that the caller reads."""

from collections import deque
from ipaddress import IPv6Address

from posthouse.policy.networks import Address

HOUR = 3600.0
_MOST_KEYS = 50_000
"""Clients remembered; beyond that the oldest go first, and `in_all` still holds."""


def rate_key(address: Address) -> str:
    """Whom a limit counts: an IPv4 address, the /64 of an IPv6 one (its owner has all of it)."""
    if isinstance(address, IPv6Address):
        return str(IPv6Address(int(address) >> 64 << 64)) + "/64"
    return str(address)


class Rate:
    """At most `per_key` in any hour for one key, `in_all` for all keys together."""

    def __init__(self, per_key: int, in_all: int) -> None:
        self.per_key = per_key
        self.in_all = in_all
        self._times: dict[str, deque[float]] = {}
        self._all: deque[float] = deque()

    def wait_seconds(self, key: str, now: float) -> float:
        """0 when one more may happen now, else how long until it may."""
        own = self._times.get(key)
        return max(_wait(own, self.per_key, now) if own else 0.0, _wait(self._all, self.in_all, now))

    def count(self, key: str, now: float) -> None:
        """One more has happened."""
        own = self._times.pop(key, None) or deque()
        own.append(now)
        self._times[key] = own  # the latest stand last
        self._all.append(now)
        while len(self._times) > _MOST_KEYS:
            del self._times[next(iter(self._times))]


def _wait(times: deque[float], most: int, now: float) -> float:
    while times and times[0] <= now - HOUR:
        times.popleft()
    if len(times) < most:
        return 0.0
    return times[len(times) - most] + HOUR - now if most else HOUR
