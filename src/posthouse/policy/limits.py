"""Limits as arithmetic: token buckets over a given `now`, and a bounded table of them. No clock in here."""

from ipaddress import IPv4Address

import msgspec

from posthouse.policy.networks import Address, normalise_address

IPV6_SUBSCRIBER_PREFIX = 64
"""Bits: whoever has one IPv6 address has 2^64 of them, so limits count networks of this size."""


class Allowance(msgspec.Struct, frozen=True):
    """How much is allowed: `burst` at once, refilled by `per_second`."""

    burst: float
    per_second: float


class Bucket(msgspec.Struct, frozen=True):
    """What is left of an allowance at a time (`at`, seconds of any clock that does not go back)."""

    left: float
    at: float


def refill(bucket: Bucket, allowance: Allowance, now: float) -> Bucket:
    """The bucket as it is now. A clock that went back refills nothing."""
    elapsed = max(0.0, now - bucket.at)
    return Bucket(min(allowance.burst, bucket.left + elapsed * allowance.per_second), max(now, bucket.at))


def seconds_until(bucket: Bucket, allowance: Allowance, now: float, cost: float = 1.0) -> float:
    """How long until `cost` may be taken; 0.0 when it may be taken now."""
    missing = cost - refill(bucket, allowance, now).left
    return 0.0 if missing <= 0 else missing / allowance.per_second if allowance.per_second > 0 else float("inf")


def limit_key(address: Address) -> str:
    """Who is counted together: one IPv4 address, or the /64 around an IPv6 address."""
    address = normalise_address(address)
    if isinstance(address, IPv4Address):
        return str(address)
    network = int(address) >> (128 - IPV6_SUBSCRIBER_PREFIX) << (128 - IPV6_SUBSCRIBER_PREFIX)
    return f"{type(address)(network)}/{IPV6_SUBSCRIBER_PREFIX}"


class Limiter:
    """An allowance for each of many keys. Holds `most` keys; then those untouched for longest are forgotten."""

    def __init__(self, allowance: Allowance, most: int = 100_000) -> None:
        self.allowance = allowance
        self._most = most
        self._buckets: dict[str, Bucket] = {}

    def try_take(self, key: str, now: float, cost: float = 1.0) -> bool:
        """Takes `cost` from the key's bucket if it holds as much; else takes nothing and answers False."""
        bucket = self._now(key, now)
        if bucket.left < cost:
            return False
        self._put(key, Bucket(bucket.left - cost, bucket.at))
        return True

    def charge(self, key: str, now: float, cost: float = 1.0) -> None:
        """Takes `cost` even into debt: for what has already happened, such as a failed login."""
        bucket = self._now(key, now)
        self._put(key, Bucket(max(-self.allowance.burst, bucket.left - cost), bucket.at))

    def seconds_until(self, key: str, now: float, cost: float = 1.0) -> float:
        """How long until `try_take` would succeed; 0.0 for now."""
        return seconds_until(self._now(key, now), self.allowance, now, cost)

    def __len__(self) -> int:
        return len(self._buckets)

    def _now(self, key: str, now: float) -> Bucket:
        bucket = self._buckets.get(key)
        return Bucket(self.allowance.burst, now) if bucket is None else refill(bucket, self.allowance, now)

    def _put(self, key: str, bucket: Bucket) -> None:
        self._buckets.pop(key, None)  # to the end: the order of the dictionary is the order of last use
        while len(self._buckets) >= self._most:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[key] = bucket
