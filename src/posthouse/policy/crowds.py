"""Connections of one client over all workers: who has too many, reckoned from what workers report. No I/O, no clock.

A client's connections are spread over the workers at random, so each worker admits up to the whole limit by its own count,
without asking. As soon as a client has an even share at one worker (before that it can't have all that it may in all), that
worker reports it, and the client is *watched*: every worker reports each change. While the sum is at the limit the
client is *full*: no worker admits more. What came in while the word was on its way is one too many and *ends*, newest first.
"""

import msgspec


def share(most: int, workers: int) -> int:
    """With fewer connections at every worker a client has fewer than `most`."""
    return max(1, most // workers)


class Count(msgspec.Struct, frozen=True):
    """A worker has so many connections of a client now, of `most` in all."""

    client: str
    count: int
    most: int


class Watch(msgspec.Struct, frozen=True):
    """Report every change of a client (`is_watched`), and admit no more of it while it `is_full`."""

    client: str
    is_watched: bool
    is_full: bool


class EndNewest(msgspec.Struct, frozen=True):
    """So many connections of a client are to end."""

    client: str
    count: int


CrowdOrders = list[tuple[int, Watch | EndNewest]]
"""Each for one worker, by its number."""


class _Crowd:
    __slots__ = ("counts", "ending", "is_full", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.counts: dict[int, int] = {}
        self.ending: dict[int, int] = {}
        self.is_full = False


class Crowds:
    """The supervisor's count of the clients that are watched."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._crowds: dict[str, _Crowd] = {}

    def report(self, worker: int, report: Count) -> CrowdOrders:
        """A worker's word; what follows from it."""
        crowd = self._crowds.get(report.client)
        is_new = crowd is None
        if crowd is None:
            if report.count < share(report.most, self._workers):
                return []  # said before it heard that the client is no longer watched
            crowd = self._crowds[report.client] = _Crowd(report.most)
        crowd.most = report.most
        self._note(crowd, worker, report.count)
        excess = sum(crowd.counts.values()) - crowd.most - sum(crowd.ending.values())
        orders: CrowdOrders = []
        if excess > 0:
            count = min(excess, report.count)
            crowd.ending[worker] = crowd.ending.get(worker, 0) + count
            orders.append((worker, EndNewest(report.client, count)))
        return orders + self._judge(report.client, crowd, is_new=is_new)

    def started(self, worker: int) -> CrowdOrders:
        """A new worker hears who is watched."""
        return [(worker, Watch(client, True, crowd.is_full)) for client, crowd in self._crowds.items()]

    def ended(self, worker: int) -> CrowdOrders:
        """The worker's connections are gone with it."""
        orders: CrowdOrders = []
        for client, crowd in list(self._crowds.items()):
            self._note(crowd, worker, 0)
            orders += self._judge(client, crowd)
        return orders

    def __len__(self) -> int:
        return len(self._crowds)

    def _note(self, crowd: _Crowd, worker: int, count: int) -> None:
        fewer = crowd.counts.get(worker, 0) - count
        if fewer > 0 and worker in crowd.ending:
            crowd.ending[worker] -= fewer
        if crowd.ending.get(worker, 1) <= 0 or not count:
            crowd.ending.pop(worker, None)
        if count:
            crowd.counts[worker] = count
        else:
            crowd.counts.pop(worker, None)

    def _judge(self, client: str, crowd: _Crowd, *, is_new: bool = False) -> CrowdOrders:
        """Tells all workers where the client stands, if that has changed; one that has become small is forgotten."""
        is_full = sum(crowd.counts.values()) >= crowd.most
        is_small = not is_full and max(crowd.counts.values(), default=0) * 2 * self._workers <= crowd.most
        if is_small and not is_new:
            del self._crowds[client]
            return self._all(Watch(client, is_watched=False, is_full=False))
        if not is_new and is_full == crowd.is_full:
            return []
        crowd.is_full = is_full
        return self._all(Watch(client, True, is_full))

    def _all(self, watch: Watch) -> CrowdOrders:
        return [(worker, watch) for worker in range(self._workers)]
