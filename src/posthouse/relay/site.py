"""A site: one set of next hops, however many domains go there. Who waits, and how many connections at once.

Limits and trouble belong to the site, not to the domain. The window (connections allowed now) starts small, grows on
success and shrinks on trouble; a site whose next hops can't be used closes for a while, and delays no other.
"""

import asyncio
import collections
import enum
import time
from collections.abc import Sequence
from typing import Protocol

from posthouse.mail.envelope import Envelope
from posthouse.mail.message import Message
from posthouse.mail.outcome import Deferred, Outcome
from posthouse.mail.reason import Reason, Slug
from posthouse.observe import log
from posthouse.relay.route import NextHop
from posthouse.transports.api import Attempt, Closed, Transport, Unavailable

FIRST_WINDOW = 5
PARCELS_PER_CONNECTION = 4  # a kept connection is worth more than many short ones: measured, two to eight beat twenty
GROWTH = 10  # reported attempts for each connection more
PROMPT_SECONDS = 0.005
"""A next hop that answers within so long is given several parcels by one connection, before another is woken for them."""

SECOND_LOOK_SECONDS = 0.01
"""After so long idle connections take what was left to busy ones, whatever keeps those."""


_TROUBLE = frozenset({Slug.NEXT_HOP_LOST, Slug.NEXT_HOP_TIMEOUT, Slug.NEXT_HOP_BROKEN, Slug.NEXT_HOP_UNREACHABLE})
"""Outcomes that say the next hop has too much on its hands, or is ill: fewer connections then."""


class ParcelState(enum.Enum):
    """Where a parcel is on its way through memory."""

    WAITING = "waiting"
    TAKEN = "taken"
    WITHDRAWN = "withdrawn"


class Parcel:
    """Some recipients of one message that go to one destination. `envelope` and `message` are None until loaded."""

    __slots__ = (
        "arrived_at",
        "attempts",
        "destination",
        "envelope",
        "indices",
        "message",
        "notices",
        "queue_id",
        "state",
    )

    def __init__(
        self,
        queue_id: int,
        destination: str,
        indices: tuple[int, ...],
        arrived_at: int,
        attempts: int = 0,
        notices: int = 0,
        envelope: Envelope | None = None,
        message: Message | None = None,
    ) -> None:
        self.queue_id = queue_id
        self.destination = destination
        self.indices = indices
        self.arrived_at = arrived_at
        self.attempts = attempts
        self.notices = notices
        self.envelope = envelope
        self.message = message
        self.state = ParcelState.WAITING


class Dispatcher(Protocol):
    """What a site needs of its scheduler."""

    def transport(self, next_hop: NextHop) -> Transport:
        """A way to one next hop."""

    def prepare(self, site: "Site", parcel: Parcel) -> Attempt | None:
        """The attempt for a parcel, which is TAKEN from now on, its message loaded; None when it is gone."""

    def ended(self, parcel: Parcel, attempt: Attempt, outcomes: Sequence[Outcome]) -> None:
        """An attempt has its outcomes."""

    def closed(self, site: "Site", why: Unavailable) -> None:
        """No next hop of the site can be used: what waits there is to be tried later."""

    def opened(self, site: "Site") -> None:
        """A site that had failed answers again."""

    def drained(self, site: "Site") -> None:
        """Nothing waits in memory any more; the spool may hold more."""

    def may_connect(self, site: "Site") -> bool:
        """One more connection is within the limit of all sites together; if not, the site is kicked when there is room."""

    def disconnected(self, site: "Site") -> None:
        """A connection of the site has ended: it is kicked if something waits there."""


class _Feed:
    """What one connection pulls from its site; it answers for what it has taken."""

    __slots__ = ("_began", "_reported", "_site", "is_leaving", "taken")

    def __init__(self, site: "Site") -> None:
        self._site = site
        self._began = 0.0
        self.taken: dict[Attempt, Parcel] = {}
        self.is_leaving = False
        self._reported = 0

    @property
    def reported(self) -> int:
        """How many attempts have ended on this connection."""
        return self._reported

    def take(self) -> Attempt | None:
        """See `transports.api.Feed`."""
        site = self._site
        if self.is_leaving or (site.surplus and self._leaves()):
            return None
        waiting = site.waiting
        while waiting and not site.is_stopping:
            parcel = waiting.popleft()
            if parcel.state is not ParcelState.WAITING:
                continue
            attempt = site.dispatcher.prepare(site, parcel)
            if attempt is not None:
                if not self.taken:
                    self._began = time.monotonic()
                self.taken[attempt] = parcel
                if not waiting:
                    site.dispatcher.drained(site)
                return attempt
        return None

    def report(self, attempt: Attempt, outcomes: Sequence[Outcome]) -> None:
        """See `transports.api.Feed`."""
        parcel = self.taken.pop(attempt)
        self._reported += 1
        now = time.monotonic()
        self._site.answered_within(now - self._began)
        self._began = now  # of the next one under way, its opening is written by now
        if any(outcome.reason.slug in _TROUBLE or outcome.diagnostic.startswith("421") for outcome in outcomes):
            self._site.troubled()
        else:
            self._site.succeeded()
        self._site.dispatcher.ended(parcel, attempt, outcomes)

    async def wait(self, seconds: float) -> bool:
        """See `transports.api.Feed`."""
        if self._leaves(is_idle=not self._site.waiting):
            return False
        found = await self._site.wait_for_parcels(seconds)
        return not self._leaves(is_idle=not found) and found

    def _leaves(self, *, is_idle: bool = False) -> bool:
        """The site has more connections than it may, or than it should when they are idle: this one ends, once it has nothing
        under way."""
        site = self._site
        if self.is_leaving:
            return True
        if site.surplus:
            site.surplus -= 1
        elif is_idle and site.awaited:
            site.awaited -= 1
        else:
            return False
        site.leaving += 1
        self.is_leaving = True
        return True

    def give_up(self, why: str) -> None:
        """The connection ended without reporting: nobody knows what became of these, so they are tried again."""
        outcome = Deferred("4.4.2", Reason(Slug.NEXT_HOP_LOST, why))
        for attempt, parcel in list(self.taken.items()):
            self._site.dispatcher.ended(parcel, attempt, [outcome] * len(attempt.indices))
        self.taken.clear()


class Site:
    """One set of next hops with its waiting parcels and its connections."""

    def __init__(
        self,
        key: str,
        next_hops: tuple[NextHop, ...],
        concurrency: int,
        dispatcher: Dispatcher,
        first_window: int = FIRST_WINDOW,
    ) -> None:
        self.key = key
        self.next_hops = next_hops
        self.concurrency = max(1, concurrency)
        self.dispatcher = dispatcher
        self.destinations: set[str] = set()
        self.waiting: collections.deque[Parcel] = collections.deque()
        self.window = min(first_window, self.concurrency)
        self.closed_until = 0.0
        self.last_trouble: Unavailable | None = None
        self.failures = 0
        self.is_stopping = False
        self.surplus = 0
        """Connections that are to end before they take anything more."""
        self.awaited = 0
        """Connections that another worker waits for: so many are not kept when they are idle."""
        self.leaving = 0
        """Connections that have been told so."""
        self.limited_by = -1
        """The scheduler's number for the routes that `concurrency` is from."""
        self._most = self.concurrency
        self._successes = 0
        self._refused_in_a_row = 0
        self._has_answered = False
        self._connections: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[bool]] = []
        self._seconds = 1.0
        self._woken = 0
        self._second_look: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Connections open or being opened now."""
        return len(self._connections)

    @property
    def wanted(self) -> int:
        """How many connections it could use now, those included that it has."""
        open_now = len(self._connections)
        if self.is_stopping or not self.waiting:
            return open_now
        return min(self.window, max(open_now, -(-len(self.waiting) // PARCELS_PER_CONNECTION)))

    def limit(self, concurrency: int) -> None:
        """The most connections, from now on; those beyond end."""
        self.concurrency = max(1, concurrency)
        self.window = min(self.window, self.concurrency)
        self.shrink(self.concurrency)

    def shrink(self, most: int) -> None:
        """Leaves `most` connections: the others end, idle ones now, busy ones when their message is through.

        Until they have, a wish for more changes nothing: a route's limit must not undo what another worker was promised.
        """
        self._most = min(most, self._most) if self.surplus else most
        self.surplus = max(0, len(self._connections) - self.leaving - self._most)
        for future in self._idle[: self.surplus]:  # the one used last comes last
            _resolve(future)

    def lend(self, count: int) -> None:
        """Another worker waits for so many connections: idle ones end."""
        self.awaited = count
        if not self.waiting:
            for future in self._idle[:count]:
                _resolve(future)

    def push(self, parcel: Parcel) -> None:
        """One more parcel waits."""
        self.waiting.append(parcel)
        self.kick()

    def answered_within(self, seconds: float) -> None:
        """How long an attempt took, for the running mean."""
        self._seconds += (seconds - self._seconds) / 8

    def kick(self) -> None:
        """Wakes an idle connection, or opens one more when the window and the work call for it.

        Where the next hop is prompt, one that was woken already takes some parcels, the next one's commands behind the final
        dot of the one before: half the writes and reads, on both sides.
        """
        if self._idle and self._seconds < PROMPT_SECONDS and len(self.waiting) <= self._woken * PARCELS_PER_CONNECTION:
            if self._second_look is None:
                self._second_look = asyncio.get_running_loop().call_later(SECOND_LOOK_SECONDS, self._look_again)
            return
        if self._wake_one():
            return
        open_now = len(self._connections)
        if self.is_stopping or open_now >= self.window or not self.waiting:
            return
        if open_now and len(self.waiting) <= open_now * PARCELS_PER_CONNECTION:
            return
        if self.dispatcher.may_connect(self):
            task = asyncio.get_running_loop().create_task(self._connect())
            self._connections.add(task)
            task.add_done_callback(self._disconnected)

    def _wake_one(self) -> bool:
        idle = self._idle
        while idle:
            future = idle.pop()  # the one used last: fewer connections stay busy
            if not future.done():
                self._woken += 1
                future.set_result(True)
                return True
        return False

    def _look_again(self) -> None:
        self._second_look = None
        for _ in self.waiting:
            if not self._wake_one():
                return

    def succeeded(self) -> None:
        """An attempt got its answers: whatever they were, the next hop can be used."""
        self._successes += 1
        self._has_answered = True
        self._refused_in_a_row = 0
        if self.failures:
            self.failures = 0
            self.last_trouble = None
            self.dispatcher.opened(self)
        if self._successes >= GROWTH and self.window < self.concurrency:
            self._successes = 0
            self.window += 1

    def troubled(self) -> None:
        """An attempt ended by the next hop hanging up or asking us to go: one connection less."""
        self._successes = 0
        self.window = max(1, self.window - 1)

    @property
    def is_proven(self) -> bool:
        """Its next hop has answered, and not failed since."""
        return self._has_answered and not self._refused_in_a_row

    @property
    def is_idle(self) -> bool:
        """Nothing waits, nobody is connected."""
        return not self.waiting and not self._connections

    async def wait_for_parcels(self, seconds: float) -> bool:
        """True as soon as something waits; False after `seconds`, or when the relay stops."""
        if self.is_stopping:
            return False
        if self.waiting:
            return True
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()
        self._idle.append(future)
        timer = loop.call_later(seconds, _resolve, future)
        try:
            return await future
        finally:
            timer.cancel()
            self._woken -= future.done() and not future.cancelled() and future.result()
            if future in self._idle:
                self._idle.remove(future)

    def stop(self) -> None:
        """Takes nothing new; idle connections end, running attempts may finish."""
        self.is_stopping = True
        for future in self._idle:
            _resolve(future)

    async def finished(self, seconds: float) -> None:
        """Waits for the connections to end, then cancels what is left (its attempts are reported as lost)."""
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=seconds)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1)

    async def _connect(self) -> None:
        trouble: Unavailable | None = None
        for next_hop in self.next_hops:
            feed = _Feed(self)
            try:
                end = await self.dispatcher.transport(next_hop).run(feed)
            except asyncio.CancelledError:
                feed.give_up("the relay stopped before the next hop had answered; it will be tried again")
                raise
            except Exception as error:
                log.exception("transport-crashed", error, site=self.key)
                feed.give_up(f"an error of our own ended the attempt ({error!r}); it will be tried again")
                end = Unavailable(
                    Reason(Slug.NEXT_HOP_LOST, f"an error of our own ended the connection: {error!r}"), "4.3.0"
                )
            finally:
                self.leaving -= feed.is_leaving
            if isinstance(end, Closed) or feed.reported:
                if isinstance(end, Unavailable):
                    self.window = max(1, self.window - 1)
                return
            trouble = end
        if trouble is not None:
            self._failed(trouble)

    def _failed(self, trouble: Unavailable) -> None:
        self.window = max(1, self.window // 2)
        self._successes = 0
        self._refused_in_a_row += 1
        self.last_trouble = trouble
        if self._refused_in_a_row < len(self._connections) and self.failures == 0:
            return  # others still talk to it: fewer connections at once, but not closed
        self.failures += 1
        self.dispatcher.closed(self, trouble)

    def _disconnected(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        if self.surplus:
            self.shrink(self._most)
        self.dispatcher.disconnected(self)


def _resolve(future: "asyncio.Future[bool]") -> None:
    if not future.done():
        future.set_result(False)
