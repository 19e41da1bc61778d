"""How often a login may fail: from one address, and on one account. Arithmetic over a given `now`, in seconds.

A try is charged before its password is looked at, so that many at once do not slip through, and given back if it was right.
While tries are under way that may turn out right, a further one is not refused on their account: it waits for their end.

An account that is guessed from everywhere (a botnet has an address for each guess) takes few tries from addresses that have
not logged in to it before, and any number from those that have: its owner is not locked out by strangers.
"""

import enum

import msgspec

from posthouse.policy.limits import Allowance, Limiter

ADDRESS_FAILURES = Allowance(burst=10, per_second=1 / 60)
"""Failed logins from one address (an IPv6 /64): ten at once, then one a minute."""

ACCOUNT_FAILURES = Allowance(burst=100, per_second=1 / 30)
"""Failed logins on one account from addresses that are new to it: a hundred at once, then two a minute."""

_KNOWN_MOST = 100_000


class Verdict(enum.StrEnum):
    """How a try ended. VOID: nobody could tell; WRONG too when whoever tried did not wait for the answer."""

    RIGHT = "right"
    WRONG = "wrong"
    VOID = "void"


class Answer(enum.Enum):
    """GO: the password may be looked at, and `end` must follow. LATER: ask again when a try has ended. REFUSED: not now."""

    GO = "go"
    LATER = "later"
    REFUSED = "refused"


class LoginTry(msgspec.Struct, frozen=True):
    """Who tries: an address as `limits.limit_key` has it, and the account's name in its one form."""

    address: str
    account: str


class LoginLimits:
    """The failures of all logins. One for a server, however many workers look at passwords."""

    def __init__(self) -> None:
        self._addresses = Limiter(ADDRESS_FAILURES)
        self._accounts = Limiter(ACCOUNT_FAILURES)
        self._under_way: dict[tuple[Limiter, str], int] = {}
        self._known: dict[LoginTry, None] = {}

    def begin(self, one: LoginTry, now: float) -> tuple[Answer, float, bool]:
        """The answer; with REFUSED the seconds until it may be tried again; whether the account's limit counts (for `end`)."""
        counts = one not in self._known
        keys = self._keys(one, account_counts=counts)
        waits = [(limiter, key, limiter.seconds_until(key, now)) for limiter, key in keys]
        longest = max(wait for _, _, wait in waits)
        if longest <= 0:
            for limiter, key in keys:
                limiter.charge(key, now)
                self._under_way[limiter, key] = self._under_way.get((limiter, key), 0) + 1
            return Answer.GO, 0.0, counts
        for limiter, key, wait in waits:
            if wait > 0 and limiter.seconds_until(key, now, 1 - self._under_way.get((limiter, key), 0)) > 0:
                return Answer.REFUSED, longest, counts
        return Answer.LATER, 0.0, counts

    def end(self, one: LoginTry, verdict: Verdict, now: float, *, account_counts: bool) -> None:
        """A try that was let go has ended."""
        for limiter, key in self._keys(one, account_counts=account_counts):
            left = self._under_way.pop((limiter, key)) - 1
            if left:
                self._under_way[limiter, key] = left
            if verdict is not Verdict.WRONG:
                limiter.charge(key, now, -1.0)
        if verdict is Verdict.RIGHT:
            self._known.pop(one, None)
            while len(self._known) >= _KNOWN_MOST:
                del self._known[next(iter(self._known))]
            self._known[one] = None

    def _keys(self, one: LoginTry, *, account_counts: bool) -> list[tuple[Limiter, str]]:
        keys = [(self._addresses, one.address)]
        if account_counts:
            keys.append((self._accounts, one.account))
        return keys
