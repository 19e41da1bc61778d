"""Who may try a password now: asked before each is looked at, by one worker or by all of them, of one and the same count.

With several workers the supervisor counts. The question is a round trip (some 0.3 ms), which a password's hash hides.
"""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from posthouse.policy.logins import Answer, LoginLimits, LoginTry, Verdict
from posthouse.serve.channel import Channel, ChannelClosed, ChannelRefusal

_ASK_SECONDS = 30.0


class CannotAsk(Exception):
    """The supervisor does not answer: nobody knows whether the password may be looked at."""


class LoginDoor(Protocol):
    """What an account store asks."""

    async def begin(self, one: LoginTry) -> tuple[int, float]:
        """A number for `end` and 0.0 when the password may be looked at; else 0 and the seconds until it may. CannotAsk.

        Waits while other tries are under way on whose end it depends.
        """

    def end(self, number: int, verdict: Verdict) -> None:
        """What came of it."""


class _Begun(msgspec.Struct, frozen=True):
    one: LoginTry
    account_counts: bool


class Logins:
    """The count itself; `clock` is in seconds and does not go back. Tries are known by who asked and by that one's number."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limits = LoginLimits()
        self._begun: dict[tuple[int, int], _Begun] = {}
        self._waiting: dict[tuple[int, int], asyncio.Future[None]] = {}

    async def begin(self, worker: int, number: int, one: LoginTry) -> float:
        """0.0 when the password may be looked at (`end` must follow), else the seconds until it may."""
        while True:
            answer, wait, account_counts = self._limits.begin(one, self._clock())
            if answer is Answer.GO:
                self._begun[worker, number] = _Begun(one, account_counts)
            if answer is not Answer.LATER:
                return wait
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[worker, number] = ended
            try:
                await ended
            finally:
                self._waiting.pop((worker, number), None)

    def end(self, worker: int, number: int, verdict: Verdict) -> None:
        """What came of a try; or nobody waits any more for the answer to `begin`."""
        waiting = self._waiting.pop((worker, number), None)
        if waiting is not None:
            waiting.cancel()
        begun = self._begun.pop((worker, number), None)
        if begun is not None:
            self._limits.end(begun.one, verdict, self._clock(), account_counts=begun.account_counts)
            for ended in self._waiting.values():
                if not ended.done():
                    ended.set_result(None)

    def ended(self, worker: int) -> None:
        """A worker is no more: its tries count as failed."""
        for asked_by, number in [*self._begun, *self._waiting]:
            if asked_by == worker:
                self.end(worker, number, Verdict.WRONG)


class OwnDoor:
    """The door of a worker that is alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._logins = Logins(clock)
        self._numbers = itertools.count(1)

    async def begin(self, one: LoginTry) -> tuple[int, float]:
        """See `LoginDoor`."""
        number = next(self._numbers)
        try:
            return number, await self._logins.begin(0, number, one)
        except asyncio.CancelledError:
            self._logins.end(0, number, Verdict.WRONG)
            raise

    def end(self, number: int, verdict: Verdict) -> None:
        """See `LoginDoor`."""
        self._logins.end(0, number, verdict)


class SharedDoor:
    """The door of one of several workers: the supervisor keeps it (verbs `login-begin`, answered, and `login-end`, told)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._numbers = itertools.count(1)

    async def begin(self, one: LoginTry) -> tuple[int, float]:
        """See `LoginDoor`."""
        number = next(self._numbers)
        try:
            answer: dict[str, Any] = await self._channel.request(
                "login-begin", timeout=_ASK_SECONDS, number=number, address=one.address, account=one.account
            )
        except (ChannelClosed, ChannelRefusal, TimeoutError) as error:
            self.end(number, Verdict.VOID)
            raise CannotAsk(str(error) or "the supervisor did not answer in time") from error
        except asyncio.CancelledError:
            self.end(number, Verdict.WRONG)
            raise
        return number, float(answer["wait"])

    def end(self, number: int, verdict: Verdict) -> None:
        """See `LoginDoor`."""
        self._channel.tell("login-end", {"number": number, "verdict": verdict})
