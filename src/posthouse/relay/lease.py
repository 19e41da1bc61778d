"""Leases: how several workers share the connections that one site may have, exactly, and hardly ever talking about it.

One lease is the right to one connection to a site. The supervisor (`Lessor`) owns them all, as many as the route's
`concurrency` says; a worker (`Tenant`) asks when it wants a connection more than it holds leases for, keeps a lease as long
as the connection lives, and gives it back with the connection's end. A connection is kept from message to message, so a
busy site costs no word between them.

    worker      Report(given, wanted)   gives back so many, wants to hold so many in all
    supervisor  Leased(count)            so many more
                Recall(keep)            hold no more than so many: end connections, idle ones first, once their message is through
                Awaited(count)          keep so many fewer connections that are idle: others wait

A lease is free again only when it was given back, or when the process that held it has ended and the kernel has closed its
sockets: at no moment are there more connections than leases. Who has fewest is served first; who has two more than one that
waits gives one up at once, and so does who has an idle connection; where there are fewer leases than workers that want one they
go round, each for TURN_SECONDS at least. So a wait is bounded by the others' turns and by the messages that are under way.

Everything here is arithmetic over events: no I/O, no clock. Each report and each order must arrive once and in order.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from posthouse.mail.reason import Slug

TURN_SECONDS = 1.0
"""How long a worker may use its only lease of a site while another waits for one: a connection is not opened for one message."""

_NO_RECALL = 1 << 62


class Report(msgspec.Struct, frozen=True):
    """A worker's word about a site: `given` leases come back, `wanted` are wanted in all, `most` is what its route allows."""

    site: str
    given: int
    wanted: int
    most: int


class Leased(msgspec.Struct, frozen=True):
    """`count` leases more."""

    site: str
    count: int


class Recall(msgspec.Struct, frozen=True):
    """Give back what goes beyond `keep`, as soon as the messages under way are through."""

    site: str
    keep: int


class Awaited(msgspec.Struct, frozen=True):
    """Others wait for `count` leases: keep so many connections fewer open when they have nothing to do."""

    site: str
    count: int


class Closing(msgspec.Struct, frozen=True):
    """No next hop of a site can be used, says a worker: for `seconds`, after so many failures in a row, for this reason."""

    site: str
    seconds: float
    failures: int
    status: str
    slug: Slug
    words: str
    remote: str = ""


Order = Leased | Recall | Awaited
Orders = list[tuple[int, Order]]
"""Each for one worker, by its number."""


class Leases(Protocol):
    """What a worker's scheduler asks before it opens a connection, and tells when one has ended."""

    def take(self, site: str, most: int, wanted: int) -> bool:
        """One more connection may be opened now. If not, `wanted` in all (of `most`) have been asked for."""

    def release(self, site: str) -> None:
        """A connection has ended; its lease may be taken again until `settle`."""

    def settle(self, site: str, wanted: int) -> None:
        """Whatever could be opened is open: leases that nobody uses go back. `wanted` counts those in use."""

    def limit(self, site: str, most: int) -> None:
        """The route allows so many now."""

    def renounce(self) -> None:
        """Routes may have changed: what is not in use goes back, and nothing is wanted any more."""

    def closed(self, closing: Closing) -> None:
        """The other workers are to leave a site alone too."""

    def opened(self, site: str) -> None:
        """A site that was closed answers again."""


class Unshared:
    """There is one worker: the site's own window is the limit."""

    def take(self, site: str, most: int, wanted: int) -> bool:
        """Always."""
        del site, most, wanted
        return True

    def release(self, site: str) -> None:
        """Nothing to do."""

    def settle(self, site: str, wanted: int) -> None:
        """Nothing to do."""

    def limit(self, site: str, most: int) -> None:
        """Nothing to do."""

    def renounce(self) -> None:
        """Nothing to do."""

    def closed(self, closing: Closing) -> None:
        """Nobody to tell."""

    def opened(self, site: str) -> None:
        """Nobody to tell."""


class _Held:
    """A worker's leases of one site: held by it, in use, wanted in all as last reported, and what a recall lets it keep."""

    __slots__ = ("held", "keep", "most", "used", "wanted")

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = self.used = self.wanted = 0
        self.keep = _NO_RECALL


class Tenant:
    """The worker's side; see `Leases`. `report` sends a word to the supervisor, `spread` one to the other workers: a closing,
    or the site that is open again."""

    def __init__(
        self, report: Callable[[Report], None], spread: Callable[[Closing | str], None] = lambda _: None
    ) -> None:
        self._report = report
        self._spread = spread
        self._sites: dict[str, _Held] = {}

    def take(self, site: str, most: int, wanted: int) -> bool:
        """See `Leases`."""
        mine = self._sites.get(site)
        if mine is None:
            mine = self._sites[site] = _Held(most)
        if mine.used < min(mine.held, mine.keep):
            mine.used += 1
            return True
        if (wanted > mine.wanted or most != mine.most) and mine.held <= mine.keep:
            mine.wanted, mine.most = wanted, most
            self._report(Report(site, 0, wanted, most))
        return False

    def release(self, site: str) -> None:
        """See `Leases`."""
        self._sites[site].used -= 1

    def settle(self, site: str, wanted: int) -> None:
        """See `Leases`."""
        mine = self._sites.get(site)
        if mine is None:
            return
        given = mine.held - mine.used
        if given or wanted < mine.wanted:
            mine.held -= given
            mine.wanted = wanted
            if mine.held <= mine.keep:
                mine.keep = _NO_RECALL
            self._report(Report(site, given, wanted, mine.most))
        if not mine.held and not mine.wanted:
            del self._sites[site]

    def limit(self, site: str, most: int) -> None:
        """See `Leases`."""
        mine = self._sites.get(site)
        if mine is not None and mine.most != most:
            mine.most = most
            self._report(Report(site, 0, mine.wanted, most))

    def renounce(self) -> None:
        """See `Leases`."""
        for site, mine in list(self._sites.items()):
            self.settle(site, mine.used)

    def closed(self, closing: Closing) -> None:
        """See `Leases`."""
        self._spread(closing)

    def opened(self, site: str) -> None:
        """See `Leases`."""
        self._spread(site)

    def leased(self, leased: Leased) -> None:
        """More leases: the site is to be kicked, then settled, since what it does not need goes back."""
        mine = self._sites.setdefault(leased.site, _Held(leased.count))
        mine.held += leased.count

    def recalled(self, recall: Recall) -> bool:
        """Whether there is anything to give back: what is not in use goes with the next `settle`."""
        mine = self._sites.get(recall.site)
        if mine is None or mine.held <= recall.keep:
            return False  # given back already, of its own accord
        mine.keep = recall.keep
        return True

    def used(self, site: str) -> int:
        """Connections that hold a lease now."""
        mine = self._sites.get(site)
        return mine.used if mine is not None else 0


class _Ledger:
    """One site's leases: by worker, what its route allows, what it holds, wants and may keep, and since when it holds any.

    `wanted` has an entry only for those that wait, the longest waiting first.
    """

    __slots__ = ("asked", "held", "keep", "most", "since", "wanted")

    def __init__(self) -> None:
        self.asked: set[int] = set()
        """Who knows that others wait, and has not given anything since."""
        self.most: dict[int, int] = {}
        self.held: dict[int, int] = {}
        self.wanted: dict[int, int] = {}
        self.keep: dict[int, int] = {}
        self.since: dict[int, float] = {}

    @property
    def limit(self) -> int:
        """While a reload goes through the workers they may differ: the strictest word counts."""
        return max(1, min(self.most.values()))

    def note(self, worker: int, report: Report) -> None:
        """Takes a report down."""
        self.most[worker] = max(1, report.most)
        held = self.held[worker] = max(0, self.held.get(worker, 0) - report.given)
        if held <= self.keep.get(worker, _NO_RECALL):
            self.keep.pop(worker, None)
        if report.given:
            self.asked.discard(worker)
            self.wanted.pop(worker, None)  # whoever had its turn waits behind the others
        if report.wanted > held:
            self.wanted[worker] = report.wanted
        else:
            self.wanted.pop(worker, None)
            if not held:
                self.forget(worker)

    def forget(self, worker: int) -> None:
        """It holds nothing and wants nothing, or is no more."""
        for table in (self.most, self.held, self.wanted, self.keep, self.since):
            table.pop(worker, None)
        self.asked.discard(worker)

    def ask(self) -> dict[int, int]:
        """Who is to hear that others wait, and for how many."""
        count = sum(wanted - self.held[worker] for worker, wanted in self.wanted.items())
        unasked = [worker for worker, held in self.held.items() if held and worker not in self.wanted | self.keep]
        fresh = {worker: count for worker in unasked if worker not in self.asked}
        self.asked.update(fresh)
        return fresh

    def grant(self, now: float) -> dict[int, int]:
        """Gives out what is free, one by one to whom has least; how many each worker gets."""
        granted: dict[int, int] = {}
        free = self.limit - sum(self.held.values())
        while free > 0:
            waiting = [worker for worker in self.wanted if worker not in self.keep]
            if not waiting:
                break
            worker = min(waiting, key=self.held.__getitem__)
            if not self.held[worker]:
                self.since[worker] = now
            self.held[worker] += 1
            granted[worker] = granted.get(worker, 0) + 1
            free -= 1
            if self.held[worker] >= self.wanted[worker]:
                del self.wanted[worker]
        return granted

    def recall(self, now: float) -> tuple[dict[int, int], float]:
        """What workers may keep, where that has become less, and when to look again because a turn ends (inf: never)."""
        kept = {worker: self.keep.get(worker, held) for worker, held in self.held.items()}
        while sum(kept.values()) > self.limit:
            kept[max(kept, key=kept.__getitem__)] -= 1
        look_again = self._share(kept, now)
        fresh = {w: kept[w] for w in kept if kept[w] < self.keep.get(w, self.held[w])}
        self.keep.update(fresh)
        return fresh, look_again

    def _share(self, kept: dict[int, int], now: float) -> float:
        """Lowers `kept` for the sake of those that wait, as far as is fair; when the next turn ends."""
        hopes = {worker: kept[worker] for worker in self.wanted if worker not in self.keep}
        coming = self.limit - sum(kept.values())  # on their way back, or about to be granted
        while hungry := [worker for worker in hopes if hopes[worker] < self.wanted[worker]]:
            least = min(hungry, key=hopes.__getitem__)
            if coming > 0:
                coming -= 1
                hopes[least] += 1
                continue
            most = max(kept, key=kept.__getitem__)
            if kept[most] - hopes[least] < 2:
                if hopes[least] or kept[most] != 1:
                    break
                most = min((w for w in kept if kept[w] == 1), key=lambda w: self.since.get(w, now))
                turn_ends = self.since.get(most, now) + TURN_SECONDS
                if now < turn_ends:
                    return turn_ends
            kept[most] -= 1
            hopes[least] += 1
            hopes.pop(most, None)
        return float("inf")


class Lessor:
    """The supervisor's side: all sites' leases. Every call gives the orders that follow from it; `now` in seconds."""

    def __init__(self) -> None:
        self._sites: dict[str, _Ledger] = {}
        self._turns: dict[str, float] = {}

    def report(self, worker: int, report: Report, now: float) -> Orders:
        """A worker's word."""
        ledger = self._sites.get(report.site)
        if ledger is None:
            ledger = self._sites[report.site] = _Ledger()
        ledger.note(worker, report)
        return self._settle(report.site, ledger, now)

    def ended(self, worker: int, now: float) -> Orders:
        """The worker's process is no more, its sockets are closed: what it held is free."""
        orders: Orders = []
        for site, ledger in list(self._sites.items()):
            if worker in ledger.most:
                ledger.forget(worker)
                orders += self._settle(site, ledger, now)
        return orders

    def due(self, now: float) -> Orders:
        """Call it at `next_at`: turns that have ended."""
        orders: Orders = []
        for site in [site for site, at in self._turns.items() if at <= now]:
            orders += self._settle(site, self._sites[site], now)
        return orders

    @property
    def next_at(self) -> float:
        """When the next turn ends; inf when nobody waits for one."""
        return min(self._turns.values(), default=float("inf"))

    def held(self, site: str) -> dict[int, int]:
        """How many leases each worker holds."""
        ledger = self._sites.get(site)
        return {} if ledger is None else {worker: held for worker, held in ledger.held.items() if held}

    def __len__(self) -> int:
        return len(self._sites)

    def _settle(self, site: str, ledger: _Ledger, now: float) -> Orders:
        self._turns.pop(site, None)
        if not ledger.most:
            del self._sites[site]
            return []
        orders: Orders = [(worker, Leased(site, count)) for worker, count in ledger.grant(now).items()]
        if ledger.wanted or ledger.limit < sum(ledger.held.values()):
            recalls, look_again = ledger.recall(now)
            orders += [(worker, Recall(site, keep)) for worker, keep in recalls.items()]
            if ledger.wanted:
                orders += [(worker, Awaited(site, count)) for worker, count in ledger.ask().items()]
            if look_again < float("inf"):
                self._turns[site] = look_again
        return orders
