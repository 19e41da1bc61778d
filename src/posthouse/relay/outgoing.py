"""How many connections go out: of all sites together by this worker, and of each site by all workers (relay.lease)."""

import collections
from collections.abc import Callable

from posthouse.relay.lease import Awaited, Leased, Leases, Recall
from posthouse.relay.site import Site


class Outgoing:
    """Says which site may open one more connection; sites that may not are kicked when there is room."""

    def __init__(self, most: int, leases: Leases, find: Callable[[str], Site | None]) -> None:
        """`most` connections of all sites together; `find` knows a site by its key."""
        self.most = most
        self.connections = 0
        self.leases = leases
        self._find = find
        self._blocked: collections.deque[Site] = collections.deque()

    def may_connect(self, site: Site) -> bool:
        """Within the limit of all sites together; a quarter of it is for sites that have shown that they answer."""
        if self.connections >= self._limit_for(site):
            if site not in self._blocked:
                self._blocked.append(site)
            return False
        if not self.leases.take(site.key, site.concurrency, site.wanted):
            return False  # kicked when there is a lease
        self.connections += 1
        return True

    def disconnected(self, site: Site) -> None:
        """A connection ended: a site that waited for room gets its turn, then the same one."""
        self.connections -= 1
        self.leases.release(site.key)
        for _ in range(len(self._blocked)):
            blocked = self._blocked.popleft()
            if self.connections < self._limit_for(blocked):
                blocked.kick()  # takes its place in the line again if there is no room for it yet
            else:
                self._blocked.append(blocked)
        if site.waiting:
            site.kick()
        self._settle(site)

    def leased(self, leased: Leased) -> None:
        """There are leases for a site: as many connections may be opened."""
        site = self._find(leased.site)
        if site is None:
            self.leases.settle(leased.site, 0)
            return
        for _ in range(leased.count):
            site.kick()
        self._settle(site)

    def recalled(self, recall: Recall) -> None:
        """Another worker waits for its part of a site's connections."""
        site = self._find(recall.site)
        if site is not None:
            site.shrink(recall.keep)
            self._settle(site)

    def awaited(self, awaited: Awaited) -> None:
        """Another worker waits for connections to a site."""
        site = self._find(awaited.site)
        if site is not None:
            site.lend(awaited.count)

    def _settle(self, site: Site) -> None:
        self.leases.settle(site.key, site.connections if site in self._blocked else site.wanted)

    def _limit_for(self, site: Site) -> int:
        """Hundreds of destinations that never answer must not keep the others from being reached."""
        return self.most if site.is_proven else max(1, self.most - self.most // 4)
