"""When: what was just accepted goes out from memory at once; what failed waits in the spool until it is due.

Memory holds a bounded part of the queue. The rest stands in the spool under its destination, and comes back when its time
has come (a heap of one entry a destination) or when a site has nothing more to do.
"""

import asyncio
import collections
import heapq
import random
from collections.abc import Callable, Iterable, Sequence

import msgspec

from posthouse.mail.envelope import Envelope, queue_id_text, shard_of
from posthouse.mail.message import Message
from posthouse.mail.outcome import Deferred, Failed, Outcome
from posthouse.mail.reason import Reason, Slug
from posthouse.observe import log
from posthouse.relay.backoff import RetryPlan, is_expired, is_notice_due, wait_after
from posthouse.relay.directions import Directions, Pathfinder
from posthouse.relay.lease import Closing, Leases, Unshared
from posthouse.relay.outgoing import Outgoing
from posthouse.relay.route import NextHop, Route
from posthouse.relay.site import FIRST_WINDOW, Parcel, ParcelState, Site
from posthouse.relay.trial import Trials
from posthouse.spool.api import Clock, ContentMissing, Fate, Retry, Spool, SpoolError, Verb, Waiting
from posthouse.transports.api import Attempt, Transport, Unavailable

REFILL = 200  # recipients fetched from the spool at a time, for one destination
FAR_FUTURE = 1 << 62
MOST_SITES = 5000
LEFT_ALONE_MS = 60_000


class Bounds(msgspec.Struct, frozen=True):
    """How much of the queue memory may hold, and how many connections may go out at once."""

    parcels: int = 20_000
    body_bytes: int = 64_000_000
    connections: int = 400


DEFAULT_BOUNDS = Bounds()


class Scheduler:
    """Decides when each recipient is tried, for all shards of one worker."""

    def __init__(
        self,
        spools: dict[int, Spool],
        pathfinder: Pathfinder,
        make_transport: Callable[[NextHop], Transport],
        retry: RetryPlan,
        clock: Clock,
        bounds: Bounds = DEFAULT_BOUNDS,
        workers: int = 1,
        leases: Leases | None = None,
    ) -> None:
        """`workers` share each site: its connections by `leases`, its first window by halves, thirds and so on."""
        self.outgoing = Outgoing(bounds.connections, leases or Unshared(), self._find_site)
        self._first_window = -(-FIRST_WINDOW // workers)
        self._routes_seen = 0
        self.spools = spools
        self.pathfinder = pathfinder
        self.retry = retry
        self.sites: dict[str, Site] = {}
        self.settle: Callable[[Parcel, Attempt, Sequence[Outcome]], None] = _nobody_settles
        self.may_leave: Callable[[str], bool] = _always
        self.make_transport = make_transport
        self._clock = clock
        self._bounds = bounds
        self._in_memory: dict[int, list[Parcel]] = {}
        self._passed_over: dict[Parcel, set[str]] = {}
        """What was due while memory had it: these destinations are looked at again when it has not."""
        self._parcels = 0
        self._body_bytes = 0
        self._directions: dict[str, tuple[Directions, int]] = {}
        self._lookups: dict[str, list[Parcel]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wakes: list[tuple[int, str]] = []
        self._wake_at: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._overflowing: set[str] = set()
        self._closed_elsewhere: dict[str, tuple[Closing, float]] = {}
        self._stopping = False
        self.trials = Trials(self._dispatch)

    # What comes in.

    def start(self) -> None:
        """Reads from the spools what waits, and plans it; what has killed too many workers is set aside first."""
        self.trials.set_aside(self.spools, self._clock)
        for spool in self.spools.values():
            for destination, earliest, _count in spool.destinations():
                self.wake(destination, earliest)

    def add(self, envelope: Envelope, message: Message) -> None:
        """A message that has just become durable: delivered from memory if there is room, else left to the spool."""
        recipients = envelope.recipients
        if len(recipients) == 1:
            self._add_parcel(envelope, message, recipients[0].forward_path.domain, (0,))
            return
        groups: dict[str, list[int]] = {}
        for index, recipient in enumerate(recipients):
            groups.setdefault(recipient.forward_path.domain, []).append(index)
        for destination, indices in groups.items():
            self._add_parcel(envelope, message, destination, tuple(indices))

    def _add_parcel(self, envelope: Envelope, message: Message, destination: str, indices: tuple[int, ...]) -> None:
        if self._stopping:
            return
        if self._parcels >= self._bounds.parcels or destination in self._overflowing:
            self._overflowing.add(destination)
            self.wake(destination, self._clock() + 1000)
            return
        size = message.content.size_bytes
        kept: Message | None = message
        if message.content.is_in_memory:
            if self._body_bytes + size > self._bounds.body_bytes:
                kept = None
            else:
                self._body_bytes += size
        parcel = Parcel(envelope.queue_id, destination, indices, envelope.arrived_at, 0, 0, envelope, kept)
        self._remember(parcel)
        self._dispatch(parcel)

    def _remember(self, parcel: Parcel) -> None:
        self._parcels += 1
        known = self._in_memory.get(parcel.queue_id)
        if known is None:
            self._in_memory[parcel.queue_id] = [parcel]
        else:
            known.append(parcel)

    def forget(self, parcel: Parcel) -> None:
        """Memory lets go of a parcel: what the spool says of its recipients counts again."""
        known = self._in_memory.get(parcel.queue_id)
        if known is None or parcel not in known:
            return
        known.remove(parcel)
        if not known:
            del self._in_memory[parcel.queue_id]
        if self.trials.journals:
            self.trials.ended(parcel)
        self._parcels -= 1
        for destination in self._passed_over.pop(parcel, ()):
            self.wake(destination, self._clock())
        message = parcel.message
        if message is not None:
            if message.content.is_in_memory:
                self._body_bytes -= message.content.size_bytes
            parcel.message = None

    def _dispatch(self, parcel: Parcel) -> None:
        destination = parcel.destination
        if not self.may_leave(destination):
            self.forget(parcel)  # stays in the spool, due, until relaying is turned on again
            return
        known = self._directions.get(destination)
        if known is not None and known[1] > self._clock():
            self._push(known[0], parcel)
            return
        waiting = self._lookups.get(destination)
        if waiting is not None:
            waiting.append(parcel)
            return
        self._lookups[destination] = [parcel]
        self._spawn(self._look_up(destination))

    def _spawn(self, work: "collections.abc.Coroutine[object, object, None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _look_up(self, destination: str) -> None:
        pathfinder = self.pathfinder
        try:
            found = await pathfinder.find(destination)
        except Exception as error:
            log.exception("directions-crashed", error, destination=destination)
            found = Deferred(
                "4.3.0",
                Reason(Slug.DNS_FAILED, f"looking up {destination} failed with {error!r}; it will be tried again"),
            )
        if pathfinder is not self.pathfinder:  # a reload came in between: the old answer may lead the old way
            self._spawn(self._look_up(destination))
            return
        # Not those that were withdrawn meanwhile: they stand in the spool, and what it says of them counts.
        parcels = [parcel for parcel in self._lookups.pop(destination, []) if parcel.state is ParcelState.WAITING]
        if not self.may_leave(destination):  # relaying was turned off meanwhile
            for parcel in parcels:
                self.forget(parcel)
            return
        if isinstance(found, Directions):
            self._directions[destination] = (found, self._clock() + int(found.ttl * 1000))
            self._renew(found)
            for parcel in parcels:
                self._push(found, parcel)
            return
        for parcel in parcels:
            attempt = self.prepare(None, parcel)
            if attempt is not None:
                self.ended(parcel, attempt, [found] * len(parcel.indices))

    def _push(self, directions: Directions, parcel: Parcel) -> None:
        if self._stopping:
            self.forget(parcel)
            return
        site = self.sites.get(directions.key)
        if site is None:
            site = Site(directions.key, directions.next_hops, directions.route.concurrency, self, self._first_window)
            site.limited_by = self._routes_seen
            closing = self._closed_elsewhere.pop(site.key, None)
            if closing is not None:
                self._leave_closed(site, *closing)
            if len(self.sites) >= MOST_SITES:
                self._forget_idle_sites()
            self.sites[directions.key] = site
        site.destinations.add(parcel.destination)
        if site.closed_until and site.closed_until > self._clock():
            self._postpone(site, [parcel])
        else:
            site.push(parcel)

    def _renew(self, found: Directions) -> None:
        """What was looked up anew counts for a site that is at work: its hosts' addresses, and the limit of its route.

        Of several routes that lead to one site the strictest counts.
        """
        site = self.sites.get(found.key)
        if site is None:
            return
        site.next_hops = found.next_hops
        concurrency = found.route.concurrency
        if site.limited_by == self._routes_seen:
            concurrency = min(concurrency, site.concurrency)
        site.limited_by = self._routes_seen
        if concurrency != site.concurrency:
            site.limit(concurrency)
            self.outgoing.leases.limit(site.key, concurrency)

    def _forget_idle_sites(self) -> None:
        """Many domains, each mailed once, must not fill memory; a closed site is remembered as long as it is closed."""
        now = self._clock()
        self.sites = {key: site for key, site in self.sites.items() if not site.is_idle or site.closed_until > now}
        self._directions = {destination: known for destination, known in self._directions.items() if known[1] > now}

    def _find_site(self, key: str) -> Site | None:
        return self.sites.get(key)

    # What sites ask (site.Dispatcher).

    def transport(self, next_hop: NextHop) -> Transport:
        """A way to one next hop."""
        return self.make_transport(next_hop)

    def prepare(self, site: Site | None, parcel: Parcel) -> Attempt | None:
        """The attempt for a parcel, its message loaded from the spool where memory does not hold it."""
        if parcel.envelope is None or parcel.message is None:
            if self.trials.journals:
                self.trials.begins(parcel)
            try:
                parcel.envelope, message = self.spools[shard_of(parcel.queue_id)].load(parcel.queue_id)
            except KeyError:
                self.forget(parcel)
                return None
            except ContentMissing as error:
                self._set_aside(parcel, str(error))
                return None
            except SpoolError as error:
                self._leave_alone(parcel, error)
                return None
            if message.content.is_in_memory:
                self._body_bytes += message.content.size_bytes
            parcel.message = message
        envelope = parcel.envelope
        parcel.state = ParcelState.TAKEN  # also while a notice of its end waits for room on the disk
        route = self._route(parcel.destination)
        reverse_path = envelope.reverse_path if route is None else route.reverse_path(envelope.reverse_path)
        return Attempt(envelope, parcel.message, parcel.indices, reverse_path)

    def _route(self, destination: str) -> Route | None:
        known = self._directions.get(destination)
        return None if known is None else known[0].route

    def _set_aside(self, parcel: Parcel, words: str) -> None:
        log.error("set-aside", queue_id=queue_id_text(parcel.queue_id), reason=Slug.CONTENT_DAMAGED, words=words)
        outcome = Deferred("4.3.0", Reason(Slug.CONTENT_DAMAGED, words))
        self.put_off(parcel, outcome, self._clock())  # so that the listing says why it is held
        self.spools[shard_of(parcel.queue_id)].act(Verb.HOLD, [parcel.queue_id])
        self.forget(parcel)

    def _leave_alone(self, parcel: Parcel, error: SpoolError) -> None:
        """A message that can't be looked at now, though nothing is wrong with it: no attempt was made, none is counted."""
        words = f"the message can't be read from the spool now: {error}"
        log.warning("not-loaded", queue_id=queue_id_text(parcel.queue_id), words=words)
        self.put_off(parcel, Deferred("4.3.0", Reason(Slug.SPOOL_BUSY, words)), self._clock() + LEFT_ALONE_MS)
        self.forget(parcel)

    def ended(self, parcel: Parcel, attempt: Attempt, outcomes: Sequence[Outcome]) -> None:
        """An attempt has its outcomes. Who settles them calls `forget` when the fates are recorded, not earlier.

        A content that turned out damaged while it was sent stays damaged: its message is set aside, not tried for days.
        """
        if outcomes and all(outcome.reason.slug is Slug.CONTENT_DAMAGED for outcome in outcomes):
            self._set_aside(parcel, outcomes[0].reason.words)
            return
        self.settle(parcel, attempt, outcomes)

    def closed(self, site: Site, why: Unavailable) -> None:
        """No next hop of a site can be used: it closes for a while, and what waits there waits in the spool."""
        if why.is_permanent:
            self._fail_all(site, why)
            return
        wait = wait_after(site.failures, self.retry, random.random())  # noqa: S311 - jitter
        site.closed_until = self._clock() + int(wait * 1000)
        log.warning(
            "site-closed",
            site=site.key,
            reason=why.reason.slug,
            words=why.reason.words,
            seconds=round(wait),
            waiting=len(site.waiting),
        )
        self.outgoing.leases.closed(
            Closing(site.key, wait, site.failures, why.status, why.reason.slug, why.reason.words, why.remote)
        )
        parcels = list(site.waiting)
        site.waiting.clear()
        outcome = Deferred(why.status, why.reason, why.remote, why.diagnostic)
        for parcel in parcels:
            if parcel.state is ParcelState.WAITING:
                self._turn_back(site, parcel, outcome)

    def closed_elsewhere(self, closing: Closing) -> None:
        """Another worker found that no next hop of a site can be used. Who is connected to it knows better."""
        until = self._clock() + closing.seconds * 1000
        site = self.sites.get(closing.site)
        if site is None:
            if len(self._closed_elsewhere) >= MOST_SITES:
                self._closed_elsewhere.clear()  # the worst that follows is an attempt in vain
            self._closed_elsewhere[closing.site] = (closing, until)
        elif not site.connections:
            self._leave_closed(site, closing, until)
            parcels = [parcel for parcel in site.waiting if parcel.state is ParcelState.WAITING]
            site.waiting.clear()
            self._postpone(site, parcels)

    def _leave_closed(self, site: Site, closing: Closing, until: float) -> None:
        site.closed_until = until
        site.failures = closing.failures
        site.last_trouble = Unavailable(Reason(closing.slug, closing.words), closing.status, closing.remote)

    def opened(self, site: Site) -> None:
        """A site that had failed answers again."""
        self.outgoing.leases.opened(site.key)

    def opened_elsewhere(self, key: str) -> None:
        """Another worker's mail got through to a site that was closed."""
        self._closed_elsewhere.pop(key, None)
        site = self.sites.get(key)
        if site is not None:
            site.closed_until, site.failures, site.last_trouble = 0.0, 0, None

    def _turn_back(self, site: Site, parcel: Parcel, outcome: Deferred) -> None:
        """An attempt that came as far as the closed door. The message is loaded only if its sender is to hear of it."""
        now = self._clock()
        is_silent = not (
            is_expired(parcel.arrived_at, now, self.retry)
            or is_notice_due(parcel.arrived_at, now, parcel.notices, self.retry)
        )
        if parcel.message is None and is_silent:
            wait = wait_after(parcel.attempts + 1, self.retry, random.random())  # noqa: S311 - jitter
            parcel.attempts += 1
            self.put_off(parcel, outcome, max(now + int(wait * 1000), int(site.closed_until)))
            self.forget(parcel)
            return
        attempt = self.prepare(site, parcel)
        if attempt is not None:
            self.ended(parcel, attempt, [outcome] * len(parcel.indices))

    def _fail_all(self, site: Site, why: Unavailable) -> None:
        outcome = Failed(why.status, why.reason, why.remote, why.diagnostic)
        while site.waiting:
            parcel = site.waiting.popleft()
            attempt = self.prepare(site, parcel) if parcel.state is ParcelState.WAITING else None
            if attempt is not None:
                self.ended(parcel, attempt, [outcome] * len(parcel.indices))

    def _postpone(self, site: Site, parcels: Iterable[Parcel]) -> None:
        """The site is closed: the parcels wait for it in the spool without an attempt being made or counted."""
        trouble = site.last_trouble
        reason = trouble.reason if trouble else Reason(Slug.NEXT_HOP_UNREACHABLE, f"{site.key} can't be reached")
        outcome = Deferred(trouble.status if trouble else "4.4.1", reason, trouble.remote if trouble else "")
        for parcel in parcels:
            next_at = int(site.closed_until + random.random() * 1000)  # noqa: S311 - jitter
            self.put_off(parcel, outcome, next_at)
            self.forget(parcel)

    def put_off(self, parcel: Parcel, outcome: Outcome, next_at: int) -> None:
        """Records that a parcel waits until `next_at`."""
        then = Retry(next_at, parcel.notices)
        now = self._clock()
        fates = [Fate(parcel.queue_id, i, outcome, then, parcel.attempts, now) for i in parcel.indices]
        self.spools[shard_of(parcel.queue_id)].record(fates)
        self.wake(parcel.destination, next_at)

    def drained(self, site: Site) -> None:
        """Memory holds nothing more for a site: fetches what the spool has left for it."""
        for destination in list(self._overflowing & site.destinations):
            self.wake(destination, self._clock())

    def may_connect(self, site: Site) -> bool:
        """See `Outgoing`."""
        return self.outgoing.may_connect(site)

    def disconnected(self, site: Site) -> None:
        """See `Outgoing`."""
        self.outgoing.disconnected(site)

    # What is due.

    def wake(self, destination: str, at: int) -> None:
        """Looks at a destination again at `at` (milliseconds since 1970), or earlier if that was planned.

        Of several wishes the earliest counts. The others may be forgotten, since each look asks the spool when to look next.
        """
        planned = self._wake_at.get(destination)
        if self._stopping or (planned is not None and planned <= at):
            return
        self._wake_at[destination] = at
        heapq.heappush(self._wakes, (at, destination))
        if self._wakes[0][0] == at:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._wakes and not self._stopping:
            # An hour at most: the wall clock may jump while the loop's does not.
            delay = min(max(self._wakes[0][0] - self._clock(), 0) / 1000, 3600.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self.look_at_clock)

    def look_at_clock(self) -> None:
        """Takes up what has become due (the timer calls it; after a jump of the clock anyone may)."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock()
        budget = 20  # destinations a turn, so that a long list does not stop the sessions
        while self._wakes and self._wakes[0][0] <= now and budget:
            at, destination = heapq.heappop(self._wakes)
            if self._wake_at.get(destination) != at:
                continue  # an earlier wake came first
            del self._wake_at[destination]
            try:
                self._refill(destination, now)
            except SpoolError as error:
                log.error("queue-not-read", destination=destination, words=str(error))
                self.wake(destination, now + LEFT_ALONE_MS)
            budget -= 1
        self._arm()

    def _refill(self, destination: str, now: int) -> None:
        """Takes what is due under a destination from the spool into memory, as far as there is room."""
        if not self.may_leave(destination):
            return
        self._overflowing.discard(destination)
        room = max(0, self._bounds.parcels - self._parcels)
        for spool in self.spools.values():
            position = (0, 0, 0)
            taken = 0
            while taken < REFILL and room > taken:
                rows = spool.due(destination, now, REFILL, position)
                taken += self._take_rows(rows)
                if len(rows) < REFILL:
                    break
                position = rows[-1].position
            else:
                self._overflowing.add(destination)
                self.wake(destination, now + 5000)
            if destination not in self._overflowing:
                later = spool.due(destination, FAR_FUTURE, 1, (now, FAR_FUTURE, 0))
                if later:
                    self.wake(destination, max(later[0].next_at, now + 1))

    def _take_rows(self, rows: Sequence[Waiting]) -> int:
        groups: dict[tuple[int, int, bool], list[Waiting]] = {}
        for row in rows:
            known = self._in_memory.get(row.queue_id, ())
            having = next((parcel for parcel in known if row.index in parcel.indices), None)
            if having is not None:
                self._passed_over.setdefault(having, set()).add(row.destination)
            else:
                groups.setdefault((row.queue_id, row.attempts, row.bounce), []).append(row)
        for (queue_id, attempts, is_bounce), members in groups.items():
            indices = tuple(row.index for row in members)
            first, notices = members[0], max(row.notices for row in members)
            parcel = Parcel(queue_id, first.destination, indices, first.arrived_at, attempts, notices)
            self._remember(parcel)
            if is_bounce:
                self._return_to_sender(parcel)
            elif self.trials.journals and self.trials.is_suspect(parcel):
                self.trials.queue(parcel)
            else:
                self._dispatch(parcel)
        return sum(len(members) for members in groups.values())

    def _return_to_sender(self, parcel: Parcel) -> None:
        attempt = self.prepare(None, parcel)
        if attempt is not None:
            reason = Reason(
                Slug.BOUNCED_BY_OPERATOR, "the postmaster of this server returned the message to its sender"
            )
            self.ended(parcel, attempt, [Failed("5.0.0", reason)] * len(parcel.indices))

    # What the operator wants.

    def withdraw(self, queue_ids: Iterable[int]) -> None:
        """Forgets what memory holds of these messages, except attempts under way: the spool's word counts from now."""
        for queue_id in queue_ids:
            for parcel in list(self._in_memory.get(queue_id, ())):
                if parcel.state is ParcelState.WAITING:
                    parcel.state = ParcelState.WITHDRAWN
                    self.forget(parcel)

    def reopen(self, destinations: Iterable[str]) -> None:
        """Tries these destinations now, whatever their sites' state."""
        now = self._clock()
        wanted = set(destinations)
        for site in self.sites.values():
            if not wanted.isdisjoint(site.destinations):
                site.closed_until = 0
        for destination in wanted:
            self._directions.pop(destination, None)
            self.wake(destination, now)

    def rescan(self) -> None:
        """Plans all that the spools hold again (after a reload, or when relaying is turned on): new routes apply to old mail."""
        self._directions.clear()
        self._closed_elsewhere.clear()
        self._routes_seen += 1
        looked_up = {parcel for parcels in self._lookups.values() for parcel in parcels}  # these get the new answer
        for parcels in list(self._in_memory.values()):
            for parcel in list(parcels):
                if parcel.state is ParcelState.WAITING and parcel not in looked_up:
                    parcel.state = ParcelState.WITHDRAWN
                    self.forget(parcel)
        for site in self.sites.values():
            site.closed_until = 0
            site.waiting.clear()
        self.sites = {key: site for key, site in self.sites.items() if site.connections}
        self.outgoing.leases.renounce()
        self.start()

    def clock_was_set(self, by: int) -> None:
        """The clock jumped `by` milliseconds and the spools have corrected what they hold: what is under way is corrected
        too, and the rest planned again."""
        for parcels in self._in_memory.values():
            for parcel in parcels:
                parcel.arrived_at += by
        self.rescan()
        self._arm()  # the timer was set by the old clock

    @property
    def depth(self) -> tuple[int, int]:
        """Parcels in memory, connections out."""
        return self._parcels, self.outgoing.connections

    async def stop(self, seconds: float) -> None:
        """Starts no new attempt, lets running ones end for `seconds`, then drops them (they are tried again after a restart)."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        for site in self.sites.values():
            site.stop()
        await asyncio.gather(*(site.finished(seconds) for site in self.sites.values()))


def _nobody_settles(_parcel: Parcel, _attempt: Attempt, _outcomes: Sequence[Outcome]) -> None:
    raise RuntimeError("a scheduler needs a Delivery")


def _always(_destination: str) -> bool:
    return True
