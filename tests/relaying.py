"""A relay without sockets for tests: memory spool, transports that answer as told, a clock that the test turns."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from posthouse.mail.envelope import Envelope, Origin, Recipient
from posthouse.mail.message import Content, Message
from posthouse.mail.outcome import Deferred, Failed, Outcome, Relayed
from posthouse.mail.reason import Reason, Slug
from posthouse.policy.decide import restore_grant
from posthouse.relay.backoff import RetryPlan
from posthouse.relay.delivery import Delivery, Results
from posthouse.relay.directions import Directions
from posthouse.relay.route import NextHop, Route, parse_hop
from posthouse.relay.scheduler import Bounds, Scheduler
from posthouse.smtp.address import Path
from posthouse.smtp.event import DotForm, Notify
from posthouse.spool.memory import MemorySpool
from posthouse.transports.api import Attempt, Closed, Feed, Unavailable

RELAYED = Relayed("2.0.0", Reason(Slug.RELAYED, "taken"), "mx.test [127.0.0.1]:25", "250 ok")
DEFERRED = Deferred("4.2.0", Reason(Slug.NEXT_HOP_DEFERRED, "later"), "mx.test [127.0.0.1]:25", "450 later")
REFUSED = Failed("5.1.1", Reason(Slug.NEXT_HOP_REFUSED, "no such user"), "mx.test [127.0.0.1]:25", "550 no")
GONE = Unavailable(Reason(Slug.NEXT_HOP_UNREACHABLE, "connection refused"), "4.4.1")

Answer = Callable[[Attempt, int], Outcome]


class Hop:
    """A transport that answers each recipient as `answer` says, or is unavailable while `is_down`."""

    def __init__(self, answer: Answer = lambda _attempt, _index: RELAYED) -> None:
        self.answer = answer
        self.is_down = False
        self.gate: Callable[[], Awaitable[object]] | None = None
        self.attempts: list[Attempt] = []
        self.connections = 0
        self.open_now = 0
        self.most_open = 0

    async def run(self, feed: Feed) -> Closed | Unavailable:
        self.connections += 1
        self.open_now += 1
        self.most_open = max(self.most_open, self.open_now)
        try:
            await asyncio.sleep(0)
            if self.is_down:
                return GONE
            done = 0
            while True:
                while (attempt := feed.take()) is not None:
                    if self.gate is not None:
                        await self.gate()
                    self.attempts.append(attempt)
                    feed.report(attempt, [self.answer(attempt, index) for index in attempt.indices])
                    done += 1
                if not await feed.wait(0.05):
                    return Closed(done)
        finally:
            self.open_now -= 1


class Map:
    """A pathfinder from a table: destination to site key, or to an outcome."""

    def __init__(self, sites: dict[str, str | Deferred | Failed] | None = None) -> None:
        self.sites = sites or {}
        self.asked: list[str] = []

    async def find(self, destination: str) -> Directions | Deferred | Failed:
        self.asked.append(destination)
        await asyncio.sleep(0)
        site = self.sites.get(destination, f"site of {destination}")
        if not isinstance(site, str):
            return site
        route = Route((destination,), (parse_hop("smtp://127.0.0.1:25"),))
        return Directions(site, (NextHop(route.hops[0], route, ((site, "127.0.0.1", 25),)),), route)


class Notices:
    """Notes the notices that would go out; `hold` keeps them from being durable."""

    def __init__(self) -> None:
        self.sent: list[tuple[Envelope, list[tuple[int, Outcome]]]] = []
        self.hold = False
        self.waiting: list[Callable[[], None]] = []

    def send(
        self, envelope: Envelope, _message: Message, results: Results, _retry_until: int, done: Callable[[], None]
    ) -> None:
        self.sent.append((envelope, list(results)))
        if self.hold:
            self.waiting.append(done)
        else:
            done()


class Bench:
    """The relay under test."""

    def __init__(
        self, *, plan: RetryPlan | None = None, bounds: Bounds | None = None, where: Map | None = None
    ) -> None:
        self.now = 1_800_000_000_000
        self.hops: dict[str, Hop] = {}
        self.spool = MemorySpool(0, loop=asyncio.get_running_loop(), clock=self.clock)
        self.map = where or Map()
        self.notices = Notices()
        plan = plan or RetryPlan()
        self.scheduler = Scheduler({0: self.spool}, self.map, self.hop_for, plan, self.clock, bounds or Bounds())
        self.delivery = Delivery(self.scheduler, self.notices, plan, self.clock)
        self.scheduler.settle = self.delivery.settle

    def clock(self) -> int:
        return self.now

    def hop_for(self, next_hop: NextHop) -> Hop:
        return self.hop(next_hop.hosts[0][0])

    def hop(self, site: str) -> Hop:
        return self.hops.setdefault(site, Hop())

    async def accept(self, *addresses: str, notify: Notify = Notify.DEFAULT, hand_over: bool = True) -> Envelope:
        envelope, message = letter(self.spool.new_queue_id(), self.now, addresses, notify)
        durable = asyncio.get_running_loop().create_future()
        self.spool.accept(envelope, message, durable.set_result)
        assert await durable is None
        if hand_over:
            self.scheduler.add(envelope, message)
        return envelope

    async def until(self, condition: Callable[[], object], seconds: float = 5.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)

    def queued(self) -> int:
        return sum(count for _, _, count in self.spool.destinations())

    async def pass_time(self, seconds: float) -> None:
        """Turns the clock and has the scheduler look at it."""
        self.now += int(seconds * 1000)
        self.scheduler.look_at_clock()
        await asyncio.sleep(0.01)


def letter(
    queue_id: int, now: int, addresses: Sequence[str], notify: Notify = Notify.DEFAULT
) -> tuple[Envelope, Message]:
    recipients = []
    for address in addresses:
        local_part, _, domain = address.rpartition("@")
        grant = restore_grant("trusted-network", "trusted-network", "127.0.0.1 may relay")
        recipients.append(Recipient(Path(local_part.encode(), domain), grant, notify))
    body = b"Subject: a\r\n\r\nb\r\n"
    envelope = Envelope(queue_id, Path(b"anna", "here.test"), tuple(recipients), Origin("127.0.0.1", "ESMTP"), now)
    return envelope, Message(b"Received: x\r\n", Content(len(body), DotForm.NONE, False, (body,)))
