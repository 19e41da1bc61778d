"""A scheduler in a world where time leaps, disks hold their word back and next hops do whatever they like; and what must hold there."""

import asyncio
import collections
import contextlib
import selectors
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path as FilePath
from types import SimpleNamespace

import pytest

from posthouse.mail.envelope import queue_id_text
from posthouse.mail.outcome import Deferred, Failed, Outcome
from posthouse.mail.reason import Reason, Slug
from posthouse.relay.backoff import RetryPlan
from posthouse.relay.delivery import Delivery
from posthouse.relay.directions import Directions
from posthouse.relay.lease import Closing, Leased, Lessor, Order, Orders, Recall, Report, Tenant, Unshared
from posthouse.relay.route import NextHop, Route, parse_hop
from posthouse.relay.scheduler import Bounds, Scheduler
from posthouse.serve.worker import Worker
from posthouse.smtp.event import Notify
from posthouse.spool.api import Done, Fate, SpoolError, SpoolFull
from posthouse.spool.memory import MemorySpool
from posthouse.spool.sqlite import SqliteSpool
from posthouse.transports.api import Attempt, Closed, Feed, Unavailable
from relaying import DEFERRED, GONE, REFUSED, RELAYED, Notices, letter
from spooling import SMALL

PLAN = RetryPlan(first=100, longest=3600, factor=4, delay_notice=200)
LATE_MS = 75_000
"""A look that failed is made again after a minute; what is due and stands still for longer is forgotten."""
ELSEWHERE = "smtp://10.0.0.9:25"
SITES = (
    {"a.test": "x", "b.test": "x", "c.test": "y", ELSEWHERE: "z"},
    {"a.test": "y", "b.test": "x", "c.test": "z", ELSEWHERE: "x"},
)
"""Where mail goes before a reload, and after it."""
LOST = Deferred("4.4.2", Reason(Slug.NEXT_HOP_LOST, "lost"), "mx.test [127.0.0.1]:25")
FAREWELL = Deferred("4.3.2", Reason(Slug.NEXT_HOP_DEFERRED, "going"), "mx.test [127.0.0.1]:25", "421 going")
NO_ROUTE = Deferred("4.4.3", Reason(Slug.DNS_FAILED, "no name server answers"))
NO_DOMAIN = Failed("5.1.2", Reason(Slug.NO_ADDRESS, "no such domain"))
DEAD = Unavailable(Reason(Slug.NEXT_HOP_REFUSED, "554 go away"), "5.3.2", is_permanent=True)
_ANSWERS = {"defer": DEFERRED, "refuse": REFUSED, "lose": LOST, "421": FAREWELL}
Key = tuple[int, int]


class LeapingLoop(asyncio.SelectorEventLoop):
    """Time passes only while nobody has anything to do, and then at once."""

    def __init__(self) -> None:
        self.now = 0.0
        self.turns = 0
        loop = self

        class Leaping(selectors.DefaultSelector):
            def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
                ready = super().select(0)
                loop.turns += 1
                assert loop.turns < 20_000, "much ado, and time does not pass"
                if not ready:
                    assert timeout is not None, "nothing will ever happen"
                    loop.now += timeout
                if timeout:
                    loop.turns = 0
                return ready

        super().__init__(Leaping())

    def time(self) -> float:
        return self.now


class Disk:
    """In place of `KernelSync`: a sync takes 4 ms, or until the disk is no longer held up."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._done: Callable[[OSError | None], None] | None = None
        self.is_held_up = False

    @property
    def is_busy(self) -> bool:
        return self._done is not None

    def begin(self, _fd: int, done: Callable[[OSError | None], None]) -> None:
        self._done = done
        self._loop.call_later(0.004, self._end, done)

    def hold_up(self, *, held: bool) -> None:
        self.is_held_up = held
        self._end(self._done)

    def _end(self, done: Callable[[OSError | None], None] | None) -> None:
        if done is not None and done is self._done and not self.is_held_up:
            self.wait()

    def wait(self) -> None:
        assert self._done is not None
        done, self._done = self._done, None
        done(None)

    def close(self) -> None:
        pass


class Hop:
    """A next hop; `mode` says what it does with what comes."""

    def __init__(self, world: "World", site: str) -> None:
        self._world = world
        self._site = site
        self.mode = "relay"
        self.changed = asyncio.Event()
        self.open_now = 0

    def turn(self, mode: str) -> None:
        self.mode = mode
        self.changed.set()
        self.changed = asyncio.Event()

    async def run(self, feed: Feed) -> Closed | Unavailable:
        self.open_now += 1
        self._world.check_connections(self._site)
        taken: dict[Attempt, list[Key]] = {}
        try:
            while True:
                await asyncio.sleep(0.001)
                if self.mode in ("down", "dead"):
                    return GONE if self.mode == "down" else DEAD
                end = await self._use(feed, taken)
                if end is not None or not await feed.wait(0):
                    return end or Closed(1)
        finally:
            for keys in taken.values():
                self._world.under_way.difference_update(keys)
            self.open_now -= 1
            self._world.disconnected(self._site)

    async def _use(self, feed: Feed, taken: dict[Attempt, list[Key]]) -> Unavailable | None:
        """One connection, two messages at once on it."""
        while True:
            while len(taken) < 2 and (attempt := feed.take()) is not None:
                taken[attempt] = self._world.took(attempt)
            if not taken:
                if not await feed.wait(self._world.idle_seconds):
                    return None
                continue
            await asyncio.sleep(3 if self.mode == "slow" else 0.001)
            while self.mode == "hang":
                await self.changed.wait()
            if self.mode == "crash":
                raise RuntimeError("a bug")
            is_end = self.mode in ("lose", "421")
            for attempt in list(taken) if is_end else list(taken)[:1]:
                outcomes = [self._answer(i) for i in attempt.indices]
                self._world.reported(taken.pop(attempt), outcomes)
                feed.report(attempt, outcomes)
            if is_end:
                return GONE if self.mode == "lose" else None

    def _answer(self, index: int) -> Outcome:
        if self.mode == "mixed":
            return (RELAYED, DEFERRED, REFUSED)[index % 3]
        return _ANSWERS.get(self.mode, RELAYED)


class Finder:
    """The pathfinder of one configuration."""

    def __init__(self, world: "World", sites: dict[str, str], concurrency: int) -> None:
        self._world = world
        self._sites = sites
        self._concurrency = concurrency

    async def find(self, destination: str) -> Directions | Deferred | Failed:
        mode = self._world.lookups.get(destination, "ok")
        await asyncio.sleep({"ok": 0, "slow": 2.0}.get(mode, 0.001))
        mode = self._world.lookups.get(destination, "ok")
        if mode in ("fails", "refuses"):
            return NO_ROUTE if mode == "fails" else NO_DOMAIN
        if mode == "crash":
            raise RuntimeError("a bug")
        key = self._sites[destination]
        ttl = 0.01 if self._sites is SITES[0] else 20.0
        route = Route((destination,), (parse_hop("smtp://127.0.0.1:25"),), concurrency=self._concurrency)
        return Directions(key, (NextHop(route.hops[0], route, ((key, "127.0.0.1", 25),)),), route, ttl)


class Shared:
    """The supervisor with its leases, and another worker that wants connections too. What they tell each other takes 10 ms."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._lessor = Lessor()
        self._pipes: list[collections.deque[Report | Order]] = [collections.deque() for _ in range(4)]
        self.tenants = [Tenant(lambda report, n=n: self._send(n, report)) for n in range(2)]  # type: ignore[misc]
        self.wanted: collections.Counter[str] = collections.Counter()
        self.open: collections.Counter[str] = collections.Counter()

    def _send(self, pipe: int, word: Report | Order) -> None:
        self._pipes[pipe].append(word)
        self._world.loop.call_later(0.01, self._arrive, pipe)

    def _arrive(self, pipe: int) -> None:
        word = self._pipes[pipe].popleft()
        if isinstance(word, Report):
            self._order(self._lessor.report(pipe, word, self._world.loop.now))
        elif pipe == 2:
            self._hear(word)
        elif isinstance(word, Leased):
            self.tenants[1].leased(word)
            self.want(word.site)
        elif isinstance(word, Recall) and self.tenants[1].recalled(word):
            self.want(word.site, min(self.wanted[word.site], word.keep))

    def _order(self, orders: Orders) -> None:
        for worker, order in orders:
            self._send(2 + worker, order)
        if self._lessor.next_at < float("inf"):
            self._world.loop.call_at(self._lessor.next_at, self._turn_ends)

    def _turn_ends(self) -> None:
        self._order(self._lessor.due(self._world.loop.now))

    def _hear(self, order: Order) -> None:
        """As serve.sharing does."""
        outgoing = self._world.scheduler.outgoing
        if isinstance(order, Leased):
            self.tenants[0].leased(order)
            outgoing.leased(order)
        elif isinstance(order, Recall):
            if self.tenants[0].recalled(order):
                outgoing.recalled(order)
        else:
            outgoing.awaited(order)

    @property
    def is_silent(self) -> bool:
        return not any(self._pipes)

    def want(self, site: str, count: int | None = None) -> None:
        """The other worker wants so many connections now: opens what it may, ends what is too many."""
        self.wanted[site] = wanted = self.wanted[site] if count is None else count
        tenant, most = self.tenants[1], self._world.concurrency
        while self.open[site] > wanted:
            self.open[site] -= 1
            tenant.release(site)
            self._world.disconnected(site)
        while self.open[site] < wanted and tenant.take(site, most, wanted):
            self.open[site] += 1
            self._world.check_connections(site)
        tenant.settle(site, wanted)

    def limit(self, most: int) -> None:
        self.tenants[1].renounce()
        for site in self.wanted:
            self.tenants[1].limit(site, most)
            self.want(site)


class World:
    """All that is around a scheduler, and the books of what it does."""

    def __init__(self, loop: LeapingLoop, directory: FilePath | None, workers: int, bounds: Bounds) -> None:
        self.loop = loop
        self._set_by = 0
        self.is_full = False
        self.idle_seconds = 0.05
        self.is_relaying = True
        self.lookups: dict[str, str] = {}
        self.concurrency = 2
        self.allowed: collections.Counter[str] = collections.Counter()
        self.hops = {site: Hop(self, site) for site in ("x", "y", "z")}
        self.shared = Shared(self) if workers > 1 else None
        self.faults: list[str] = []
        loop.set_exception_handler(lambda _loop, context: self.faults.append(repr(context)))
        self.accepted: dict[Key, str] = {}
        self.held: set[Key] = set()
        self.deleted: set[Key] = set()
        self.under_way: set[Key] = set()
        self.relayed: set[Key] = set()
        self.settled: collections.Counter[Key] = collections.Counter()
        self.spool: MemorySpool | SqliteSpool
        if directory is None:
            self.spool = MemorySpool(0, loop=loop, clock=self.clock)
        else:
            self.spool = SqliteSpool(directory, 0, loop=loop, settings=SMALL, clock=self.clock)
            self.spool._ticker.cancel()  # what it does needs the thread
            self._begin = self.spool._batches.writer.begin
            self.spool._batches.writer.begin = self._begin_if_room  # type: ignore[method-assign]
        self._record = self.spool.record
        self.spool.record = self._note  # type: ignore[method-assign]
        self.notices = Notices()
        leases = self.shared.tenants[0] if self.shared else Unshared()
        finder = Finder(self, SITES[0], self.concurrency)
        self.scheduler = Scheduler(  # type: ignore[arg-type]
            {0: self.spool}, finder, lambda hop: self.hops[hop.hosts[0][0]], PLAN, self.clock, bounds, workers, leases
        )
        self.scheduler.settle = Delivery(self.scheduler, self.notices, PLAN, self.clock).settle
        self.scheduler.may_leave = lambda _destination: self.is_relaying
        self.worker = Worker()
        self.worker._scheduler, self.worker._spools = self.scheduler, {0: self.spool}  # type: ignore[dict-item]

    def clock(self) -> int:
        return 1_800_000_000_000 + int(self.loop.now * 1000) + self._set_by

    def _begin_if_room(self) -> None:
        self._begin()
        if self.is_full:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    # The books.

    def _note(self, fates: Sequence[Fate], *, at_once: bool = False) -> None:
        self.settled.update((fate.queue_id, fate.index) for fate in fates if isinstance(fate.then, Done))
        self._record(fates, at_once=at_once)

    def must(self, holds: bool, words: str) -> None:
        """Where an exception would be caught, and taken for a transport's."""
        if not holds:
            self.faults.append(words)

    def took(self, attempt: Attempt) -> list[Key]:
        keys = [(attempt.envelope.queue_id, index) for index in attempt.indices]
        self.must(self.is_relaying, "mail leaves while relaying is off")
        self.must(self.under_way.isdisjoint(keys), "a recipient is under way twice")
        self.must(self.relayed.isdisjoint(keys), "a recipient gets its mail twice")
        self.must(self.held.isdisjoint(keys), "held mail leaves")
        self.must(self.deleted.isdisjoint(keys), "deleted mail leaves")
        self.under_way.update(keys)
        return keys

    def reported(self, keys: list[Key], outcomes: Sequence[Outcome]) -> None:
        self.under_way.difference_update(keys)
        self.relayed.update(key for key, outcome in zip(keys, outcomes, strict=True) if outcome is RELAYED)

    def _open(self, site: str) -> int:
        return self.hops[site].open_now + (self.shared.open[site] if self.shared else 0)

    def check_connections(self, site: str) -> None:
        self.must(self._open(site) <= max(self.concurrency, self.allowed[site]), "too many connections to a site")
        open_here = sum(hop.open_now for hop in self.hops.values())
        self.must(open_here <= self.scheduler.outgoing.most, "too many connections of a worker")

    def disconnected(self, site: str) -> None:
        """What goes beyond a limit that was lowered is never opened again, once all leases under way have arrived."""
        if self.shared is None or self.shared.is_silent:
            self.allowed[site] = min(self.allowed[site], self._open(site))

    # What happens.

    def mail(self, *domains: str) -> None:
        envelope, message = letter(
            self.spool.new_queue_id(), self.clock(), [f"{n}@{name}" for n, name in enumerate(domains)], Notify.DEFAULT
        )

        def durable(error: SpoolError | None, /) -> None:
            if error is None:
                self.accepted.update({(envelope.queue_id, n): name for n, name in enumerate(domains)})
                self.scheduler.add(envelope, message)

        self.spool.accept(envelope, message, durable)

    def act(self, verb: str, number: int, destination: str | None) -> None:
        ids = list(dict.fromkeys(queue_id for queue_id, _ in self.accepted))
        if not ids:
            return
        queue_id = ids[number % len(ids)]
        rows = [(queue_id, row.index) for row in self.spool.pending(queue_id) if destination in (None, row.destination)]
        bounced = {(queue_id, row.index) for row in self.spool.pending(queue_id) if row.bounce}
        arguments = {
            "ids": [queue_id_text(queue_id)],
            "destination": destination,
            "next_hop": ELSEWHERE if verb == "reroute" else "",
        }
        with contextlib.suppress(SpoolFull):
            self.worker._act_on_queue(verb, arguments)
            if verb == "hold":
                self.held.update(set(rows) - bounced)
            elif verb in ("release", "bounce"):
                self.held.difference_update(rows)
            elif verb == "delete":
                self.deleted.update(rows)

    def reload(self, number: int, concurrency: int) -> None:
        for site in self.hops:
            self.allowed[site] = max(self.allowed[site], self.concurrency if self.shared else self._open(site))
        self.concurrency = concurrency
        self.scheduler.pathfinder = Finder(self, SITES[number], concurrency)  # type: ignore[assignment]
        self.scheduler.rescan()
        if self.shared:
            self.shared.limit(concurrency)

    def relay(self, is_on: bool) -> None:
        if is_on != self.is_relaying:
            self.is_relaying = is_on
            self.scheduler.rescan()

    def set_clock(self, seconds: int) -> None:
        if not self.is_full:  # a full disk keeps the old times, which is meant
            self._set_by += seconds * 1000
            self.worker._correct_times(seconds * 1000)
            self.scheduler.clock_was_set(seconds * 1000)

    def hear_of(self, site: str, is_closed: bool) -> None:
        if is_closed:
            self.scheduler.closed_elsewhere(Closing(site, 150, 2, "4.4.1", Slug.NEXT_HOP_UNREACHABLE, "gone"))
        else:
            self.scheduler.opened_elsewhere(site)

    def rival(self, site: str, count: int) -> None:
        if self.shared:
            self.shared.want(site, count)

    def hold_notices(self, held: bool) -> None:
        self.notices.hold = held
        while self.notices.waiting and not held:
            self.notices.waiting.pop(0)()

    def hold_up_disk(self, held: bool) -> None:
        if isinstance(self.spool, SqliteSpool):
            self.spool._commit._kernel.hold_up(held=held)  # type: ignore[union-attr]

    def fill_disk(self, is_full: bool) -> None:
        if isinstance(self.spool, SqliteSpool):
            self.is_full = is_full
            if not is_full:
                self.spool._batches.reserve.restore(1 << 40)

    # What must hold.

    def become_well(self) -> None:
        for hop in self.hops.values():
            hop.turn("relay")
        self.lookups.clear()
        self.hold_up_disk(False)
        self.fill_disk(False)
        self.hold_notices(False)
        self.relay(True)
        for site in self.hops:
            self.rival(site, 0)

    async def check(self) -> None:
        """In a world that is well everything flows: nothing stands still for long, and in the end all is settled."""
        self.become_well()
        for _ in range(75):
            await asyncio.sleep(80)
            assert not self.faults, self.faults
            self._check_that_nothing_is_late()
            if all(row in self.held for row in self._queued()) and not self.scheduler.depth[0]:
                break
        scheduler = self.scheduler
        assert [key for key in self._queued() if key not in self.held] == [], "forgotten"
        for key in self.accepted.keys() - self.held - self.deleted:
            assert self.settled[key] == 1, "settled twice, or never"
        await asyncio.sleep(10)
        assert scheduler.depth == (0, 0)
        assert (scheduler._parcels, scheduler._body_bytes) == (0, 0)
        assert (scheduler._in_memory, scheduler._lookups, scheduler._passed_over) == ({}, {}, {})

    def _queued(self) -> list[Key]:
        return [
            (row.queue_id, row.index)
            for queue_id in {key[0] for key in self.accepted}
            for row in self.spool.pending(queue_id)
        ]

    def _check_that_nothing_is_late(self) -> None:
        for destination in SITES[0]:
            for row in self.spool.due(destination, self.clock() - LATE_MS, 100):
                assert row.queue_id in self.scheduler._in_memory, f"{row} stands still at {self.clock()}"

    async def end(self) -> None:
        self.become_well()
        await self.scheduler.stop(1)
        self.spool.close()


@contextlib.contextmanager
def deterministic(loop: LeapingLoop, most_sites: int) -> Iterator[None]:
    """No clock but the loop's, no thread, no disk to wait for."""
    clock = SimpleNamespace(monotonic=loop.time, perf_counter=loop.time)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posthouse.relay.site.time", clock)
        patch.setattr("posthouse.spool.batch.time", clock)
        patch.setattr("posthouse.spool.commit.KernelSync", Disk)
        patch.setattr("posthouse.spool.batch.Batches.wants_upkeep", lambda _self: False)
        patch.setattr("posthouse.relay.scheduler.MOST_SITES", most_sites)
        patch.setattr("os.fsync", lambda _fd: None)
        patch.setattr("os.fdatasync", lambda _fd: None)
        yield
