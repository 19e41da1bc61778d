"""What all workers share, at the supervisor: the leases of every site, what one worker has learnt of a site's trouble,
how many logins have failed, and which clients have how many connections.

A worker tells and is told down its channel (`Channel.tell`, in order, unanswered):

    from a worker   lease         relay.lease.Report
                    site-closed   relay.lease.Closing    the others leave the site alone too
                    site-opened   site                   it answers again
                    login-end     number, verdict        (login-begin is asked: number, address, account; answered: wait)
                    crowd         policy.crowds.Count
    to a worker     leased, recall, awaited relay.lease.Leased, Recall, Awaited
                    watch, end-newest policy.crowds.Watch, EndNewest
                    site-closed, site-opened

With one worker nothing of this is ever said.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from posthouse.policy.crowds import Count, CrowdOrders, Crowds, Watch
from posthouse.policy.logins import LoginTry, Verdict
from posthouse.relay.lease import Lessor, Orders, Report
from posthouse.serve.channel import ChannelRefusal
from posthouse.serve.logins import Logins

Tell = Callable[[int, str, object], None]
"""Tells a worker, by its number, if it is there."""


class Shared:
    """The supervisor's side."""

    def __init__(self, workers: int, tell: Tell) -> None:
        self._workers = workers
        self._tell = tell
        self._lessor = Lessor()
        self._crowds = Crowds(workers)
        self._logins = Logins(time.monotonic)
        self._timer: asyncio.TimerHandle | None = None
        self.answers: dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]] = {}
        """Who answers what the workers ask, by verb."""

    def heard(self, worker: int, verb: str, arguments: dict[str, Any]) -> None:
        """A worker tells something."""
        match verb:
            case "lease":
                report = msgspec.convert(arguments, Report)
                self._carry_out(self._lessor.report(worker, report, self._now()))
            case "site-closed" | "site-opened":
                for other in range(self._workers):
                    if other != worker:
                        self._tell(other, verb, arguments)
            case "login-end":
                self._logins.end(worker, int(arguments["number"]), Verdict(arguments["verdict"]))
            case "crowd":
                self._order(self._crowds.report(worker, msgspec.convert(arguments, Count)))
            case _:
                raise ChannelRefusal(f"the supervisor knows no {verb}")

    async def asked(self, worker: int, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """A worker asks. ChannelRefusal."""
        if verb == "login-begin":
            one = LoginTry(str(arguments["address"]), str(arguments["account"]))
            return {"wait": await self._logins.begin(worker, int(arguments["number"]), one)}
        if verb in self.answers:
            return await self.answers[verb](arguments)
        raise ChannelRefusal(f"the supervisor knows no {verb}")

    def started(self, worker: int) -> None:
        """A worker is ready."""
        self._order(self._crowds.started(worker))

    def ended(self, worker: int) -> None:
        """The worker's process has ended, and with it everything that it held: its connections are closed."""
        self._carry_out(self._lessor.ended(worker, self._now()))
        self._logins.ended(worker)
        self._order(self._crowds.ended(worker))

    def close(self) -> None:
        """The server stops."""
        if self._timer is not None:
            self._timer.cancel()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _order(self, orders: CrowdOrders) -> None:
        for worker, order in orders:
            self._tell(worker, "watch" if isinstance(order, Watch) else "end-newest", order)

    def _carry_out(self, orders: Orders) -> None:
        for worker, order in orders:
            self._tell(worker, type(order).__name__.lower(), order)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_at = self._lessor.next_at
        if next_at < float("inf"):
            self._timer = asyncio.get_running_loop().call_at(next_at, self._turn_ends)

    def _turn_ends(self) -> None:
        self._carry_out(self._lessor.due(self._now()))
