"""The connections of a worker: accepted, counted, bounded, and ended together."""

import asyncio
import resource
import socket
from collections.abc import Callable
from ipaddress import IPv6Address

from posthouse.net.connection import Handler, ListenerPlan, Peer, ServerProtocol, Timeouts
from posthouse.observe import metrics

__all__ = ["Handler", "Listener", "ListenerPlan", "Peer", "Server", "ServerProtocol", "Timeouts"]

SWEEP_SECONDS = 1.0
STOP_CONTENT_SECONDS = 15.0
"""When the server stops, a content under way may take so long to arrive whole."""

SHED = 256
"""So many connections beyond the limit still get a 421 at most; further ones are cut without a word."""


class Listener:
    """A socket that accepts. A new `plan` counts for the next connection."""

    def __init__(self, sock: socket.socket, plan: ListenerPlan, accepting: asyncio.Server) -> None:
        self.plan = plan
        self._sock = sock
        self._accepting = accepting
        self.is_closed = False

    def close(self) -> None:
        """Accepts no more; connections that are there go on."""
        self.is_closed = True
        self._accepting.close()
        self._sock.close()


class Server:
    """All connections of a worker: their number, their deadlines, their end."""

    def __init__(
        self,
        most: int = 10_000,
        most_per_client: int = 50,
        share: Callable[[int], int] = lambda most: most,
        report: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Where several workers share `most_per_client`, `report` is told whose connections there are how many of, and the
        most, from `share(most)` connections on."""
        self.connections: dict[ServerProtocol, None] = {}  # in the order of their coming
        self.is_stopping = False
        self.heard = 0
        """How often octets have come from a client."""
        self._most, self._shed = _room(most)
        self._most_per_client = most_per_client
        self._share_of = share
        self._report = report
        self._share = share(most_per_client)
        self._watched: set[str] = set()
        self._full: set[str] = set()
        self._per_client: dict[str, int] = {}
        self._listeners: list[Listener] = []
        self._sweeper: asyncio.TimerHandle | None = None

    def limit(self, most: int, most_per_client: int) -> None:
        """New limits, for connections to come."""
        self._most, self._shed = _room(most)
        self._most_per_client = most_per_client
        self._share = self._share_of(most_per_client)
        for client, count in list(self._per_client.items()):
            self._recount(client, count)

    def watch(self, client: str, *, is_watched: bool, is_full: bool) -> None:
        """The supervisor counts a client's connections (or no longer), and there may be no more of them for now (or again)."""
        (self._full.add if is_full else self._full.discard)(client)
        if is_watched and client not in self._watched:
            self._watched.add(client)
            self._recount(client, self._per_client.get(client, 0))
        elif not is_watched:
            self._watched.discard(client)
            self._recount(client, self._per_client.get(client, 0))  # in case it has just grown

    def end_newest(self, client: str, count: int) -> None:
        """Ends so many of a client's connections, those that came last, unless a message is on its way."""
        for connection in reversed(list(self.connections)):
            if not count:
                return
            if connection.admitted and _client_key(connection.admitted) == client:
                is_ended = connection.end_if_idle("too many connections from your address", may_send_content=True)
                metrics.sessions_refused.inc("connections-per-client", is_ended)
                count -= is_ended

    def _recount(self, client: str, count: int) -> None:
        """Reports a client that is watched, or has an even share here."""
        if self._report is not None and client and (count >= self._share or client in self._watched):
            self._report(client, count, self._most_per_client)

    async def listen(self, sock: socket.socket, plan: ListenerPlan) -> Listener:
        """Accepts on a listening socket (TCP or Unix) by a plan, until the result is closed."""
        loop = asyncio.get_running_loop()

        def make() -> ServerProtocol:
            return ServerProtocol(self, listener.plan)

        if sock.family == socket.AF_UNIX:
            accepting = await loop.create_unix_server(make, sock=sock, start_serving=False)
        else:
            accepting = await loop.create_server(make, sock=sock, backlog=1024, start_serving=False)
        listener = Listener(sock, plan, accepting)
        await accepting.start_serving()
        self._listeners = [one for one in self._listeners if not one.is_closed]
        self._listeners.append(listener)
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)
        return listener

    @property
    def is_flooded(self) -> bool:
        """There are so many connections that a further one gets not even a 421."""
        return len(self.connections) > self._most + self._shed

    def admit(self, client: str) -> str:
        """ "" when one more connection from `client` is within the limits, else the sentence for the 421."""
        if len(self.connections) > self._most:
            metrics.sessions_refused.inc("connections")
            return "Too many connections; try again later"
        key = _client_key(client)
        count = self._per_client.get(key, 0) + 1
        if client and (count > self._most_per_client or key in self._full):
            metrics.sessions_refused.inc("connections-per-client")
            return "Too many connections from your address; try again later"
        self._per_client[key] = count
        if self._report is not None:
            self._recount(key, count)
        return ""

    def release(self, client: str) -> None:
        """A connection that `admit` counted is gone."""
        key = _client_key(client)
        count = self._per_client.get(key, 0) - 1
        if count > 0:
            self._per_client[key] = count
        else:
            self._per_client.pop(key, None)
        if key in self._watched:
            self._recount(key, max(0, count))

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)
        now = loop.time()
        for connection in list(self.connections):
            connection.enforce_deadline(now)

    async def stop(self, seconds: float) -> None:
        """Accepts nothing new, says 421 to all but those whose message is arriving or waits for its answer; these may take
        `seconds`, a content that is still arriving STOP_CONTENT_SECONDS."""
        self.is_stopping = True
        for listener in self._listeners:
            listener.close()
        loop = asyncio.get_running_loop()
        now = loop.time()
        end, content_end = now + seconds, now + min(seconds, STOP_CONTENT_SECONDS)
        while self.connections and now < end:
            for connection in list(self.connections):
                connection.end_if_idle("the server is stopping", may_send_content=now < content_end)
            await asyncio.sleep(0.02)
            now = loop.time()
        for connection in list(self.connections):
            connection.cut("the server is stopping")
        await asyncio.sleep(0)  # what was said is written
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()


def _client_key(client: str) -> str:
    """Whose connections are counted together: an IPv6 host has a whole /64 to call from."""
    return IPv6Address(client).exploded[:19] if ":" in client else client


def _room(most: int) -> tuple[int, int]:
    """How many connections are served, of `most` wished for, and how many more get a 421: as the descriptors of this process
    allow. A quarter of these is left to contents on their way to disk, to deliveries and to the spool, which must go on when
    strangers hold all connections they can get."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return most, SHED
    room = limit - min(max(limit // 4, 64), limit // 2)
    shed = min(SHED, room // 4)
    return min(most, room - shed), shed
