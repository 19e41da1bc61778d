"""The server side's driver: one object a connection, no task a connection, one write a flight.

It moves octets between a socket and a `ServerConnection`, arms the timeouts that the engine names, and brings what the
engine learns to a handler. It decides nothing about mail.
"""

import asyncio
import enum
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Protocol, cast

import msgspec

from posthouse.net.proxy import Malformed, NeedMore, Proxied, ProxyReader
from posthouse.net.tls import TlsError, TlsLayer
from posthouse.observe import log, metrics
from posthouse.smtp.event import Event, TlsWanted
from posthouse.smtp.reply import Reply
from posthouse.smtp.server import Ending, ServerConnection, Signal, Timeout

SWEEP_SECONDS = 1.0
DRAIN_SECONDS = 2.0
DRAIN_OCTETS = 1 << 20
HANDSHAKE_SECONDS = 30.0
RATE_GRACE_SECONDS = 60.0
MOST_BUFFERED = 256 * 1024
"""Octets that may wait for a reply of ours before we stop reading the client."""


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end. `address` is "" on the local socket, where `uid` says who called (-1 elsewhere).

    `is_address_known` is False when a proxy said UNKNOWN or LOCAL: the address is then the proxy's own.
    """

    address: str
    port: int
    uid: int = -1
    is_address_known: bool = True


class Timeouts(msgspec.Struct, frozen=True):
    """Seconds (RFC 5321 4.5.3.2) and octets a second: how long a command and a silence in the content may take, and the
    least average rate of content after a minute."""

    command: float = 300.0
    content: float = 600.0
    minimum_rate: int = 500


class Phase(enum.Enum):
    """How far a connection has come."""

    PROXY = "proxy"
    HANDSHAKE = "handshake"
    TALKING = "talking"
    DRAINING = "draining"
    ENDED = "ended"


class Handler(Protocol):
    """What the server does with one connection. Made by a factory when the connection is there."""

    engine: ServerConnection

    def connected(self, peer: Peer) -> Reply | None:
        """Who calls; the greeting or a refusal (with 4yz or 5yz the connection then ends). None: the engine's own banner."""

    def tls_started(self, description: str) -> None:
        """TLS is up; all that was said before is forgotten (RFC 3207 4.2)."""

    def handle(self, event: Event) -> Reply | None:
        """An event. For one that needs a reply: the Reply, or None when `ServerProtocol.answer` will bring it later."""

    def closed(self) -> None:
        """The connection is gone, whatever was under way."""


class ListenerPlan(msgspec.Struct, frozen=True, eq=False):
    """How connections of one listener begin. `proxies` holds the addresses that may speak PROXY; None: PROXY isn't spoken."""

    make_handler: Callable[["ServerProtocol"], Handler]
    timeouts: Timeouts
    tls: Callable[[], ssl.SSLContext | None] | None = None
    implicit_tls: bool = False
    is_proxy: Callable[[str], bool] | None = None


class Server:
    """All connections of a worker: their number, their deadlines, their end."""

    def __init__(self, most: int = 10_000, most_per_client: int = 50) -> None:
        self.connections: set[ServerProtocol] = set()
        self.is_stopping = False
        self._most = most
        self._most_per_client = most_per_client
        self._per_client: dict[str, int] = {}
        self._listeners: list[asyncio.Server] = []
        self._sweeper: asyncio.TimerHandle | None = None

    async def listen(self, sock: socket.socket, plan: ListenerPlan) -> asyncio.Server:
        """Accepts on a listening socket (TCP or Unix) by a plan, until the result is closed."""
        loop = asyncio.get_running_loop()
        make = lambda: ServerProtocol(self, plan)  # noqa: E731
        if sock.family == socket.AF_UNIX:
            server = await loop.create_unix_server(make, sock=sock)
        else:
            server = await loop.create_server(make, sock=sock, backlog=1024)
        self._listeners.append(server)
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)
        return server

    def admit(self, client: str) -> str:
        """ "" when one more connection from `client` is within the limits, else the sentence for the 421."""
        if len(self.connections) > self._most:
            metrics.sessions_refused.inc("connections")
            return "Too many connections; try again later"
        count = self._per_client.get(client, 0) + 1
        if client and count > self._most_per_client:
            metrics.sessions_refused.inc("connections-per-client")
            return "Too many connections from your address; try again later"
        self._per_client[client] = count
        return ""

    def release(self, client: str) -> None:
        """A connection that `admit` counted is gone."""
        count = self._per_client.get(client, 0) - 1
        if count > 0:
            self._per_client[client] = count
        else:
            self._per_client.pop(client, None)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.enforce_deadline(now)
        self._sweeper = loop.call_later(SWEEP_SECONDS, self._sweep)

    async def stop(self, seconds: float) -> None:
        """Accepts nothing new; 421 to who is between transactions; the others may finish theirs, for `seconds`."""
        self.is_stopping = True
        for listener in self._listeners:
            listener.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.connections:
            for connection in list(self.connections):
                connection.end_if_idle()
            if loop.time() >= end:
                break
            await asyncio.sleep(0.05)
        for connection in list(self.connections):
            connection.cut("the server is stopping")
        if self._sweeper is not None:
            self._sweeper.cancel()


class ServerProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, server: Server, plan: ListenerPlan) -> None:
        self._server = server
        self._plan = plan
        self._phase = Phase.TALKING
        self._tls: TlsLayer | None = None
        self._proxy: ProxyReader | None = None
        self._admitted: str | None = None
        self._deadline = 0.0
        self._timeout: Timeout | None = None
        self._mark = -1
        self._content_from = 0.0
        self._content_seen = 0
        self._drained = 0
        self._is_reading = True
        self._hold = False
        self._flush_timer: asyncio.TimerHandle | None = None

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._server.connections.add(self)
        self._socket_peer = _peer_of(self._transport)
        self._handler = self._plan.make_handler(self)
        self.engine = self._handler.engine
        self._deadline = self._loop.time() + HANDSHAKE_SECONDS
        if self._plan.is_proxy is not None:
            if not self._plan.is_proxy(self._socket_peer.address):
                log.warning("proxy-refused", client=self._socket_peer.address)
                self._transport.abort()
                return
            self._proxy = ProxyReader()
            self._phase = Phase.PROXY
        else:
            self._begin(self._socket_peer)

    def _begin(self, peer: Peer) -> None:
        self.peer = peer
        if self._plan.implicit_tls and self._plan.tls is not None:
            self._phase = Phase.HANDSHAKE
            self._start_tls()
        else:
            self._greet()

    def _greet(self) -> None:
        self._phase = Phase.TALKING
        refusal = self._server.admit(self.peer.address)
        if refusal:
            self.engine.greet(Reply(421, "4.3.2", (refusal,)))
        else:
            self._admitted = self.peer.address
            if self._server.is_stopping:
                self.engine.greet(Reply(421, "4.3.2", ("The server is stopping; try again later",)))
            else:
                self.engine.greet(self._handler.connected(self.peer))
        self._after_events()

    def data_received(self, data: bytes) -> None:
        """Octets from the client."""
        if self._phase is Phase.PROXY:
            data = self._read_proxy(data)
            if not data:
                return
        if self._phase is Phase.DRAINING:
            self._drained += len(data)
            if self._drained > DRAIN_OCTETS:
                self._transport.abort()
            return
        if self._tls is not None:
            data = self._decrypt(data)
        if not data or self._phase is not Phase.TALKING:
            return
        self._content_seen += len(data)
        self.engine.receive_data(data)
        self._pump()

    def eof_received(self) -> bool:
        """The client has half-closed: what it asked is still answered."""
        if self._phase is Phase.TALKING and self._tls is None:
            self.engine.receive_eof()
            self._pump()
            return self._hold
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """The connection is gone."""
        self._phase = Phase.ENDED
        self._server.connections.discard(self)
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        if self._admitted is not None:
            self._server.release(self._admitted)
        self._handler.closed()

    # The engine's side.

    def answer(self, reply: Reply) -> None:
        """The reply to the event for which the handler had none at once."""
        self._hold = False
        if self._phase is not Phase.TALKING:
            return
        self.engine.reply(reply)
        self._pump()

    def pause(self) -> None:
        """Stops reading the client (a large content waits for the disk)."""
        if self._is_reading and self._phase is Phase.TALKING:
            self._is_reading = False
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads the client again."""
        if not self._is_reading and self._phase is not Phase.ENDED:
            self._is_reading = True
            self._content_from = self._loop.time()  # the silence was ours
            self._content_seen = 0
            self._transport.resume_reading()

    def _pump(self) -> None:
        engine = self.engine
        handle = self._handler.handle
        while True:
            event = engine.next_event()
            if isinstance(event, Signal):
                break
            if event.needs_reply:
                reply = handle(event)
                if reply is None:
                    self._hold = True
                    break
                engine.reply(reply)
            elif type(event) is TlsWanted:
                handle(event)
                self._flush()
                self._phase = Phase.HANDSHAKE
                self._start_tls()
                return
            else:
                handle(event)
        self._after_events()

    def _after_events(self) -> None:
        engine = self.engine
        delay = engine.delay
        if delay > 0:
            if self._flush_timer is None:
                self.pause()
                self._flush_timer = self._loop.call_later(delay, self._flush_late)
            return
        self._flush()
        if engine.ending is not Ending.NOT_YET:
            self._end(engine.ending)
            return
        if engine.buffered_bytes > MOST_BUFFERED:
            self.pause()
        elif not self._is_reading and not self._hold and not self.engine_is_congested():
            self.resume()
        self._arm()

    def engine_is_congested(self) -> bool:
        """The handler has asked for a pause of its own."""
        return bool(getattr(self._handler, "is_congested", False))

    def _flush_late(self) -> None:
        self._flush_timer = None
        if self._phase is Phase.TALKING:
            self.engine.delay_is_over()
            self._after_events()

    def _flush(self) -> None:
        data = self.engine.data_to_send()
        if not data:
            return
        if self._tls is not None:
            try:
                self._tls.encrypt(data)
            except TlsError as error:
                self.cut(error.words)
                return
            data = self._tls.data_to_send()
        self._transport.write(data)

    # TLS and PROXY.

    def _read_proxy(self, data: bytes) -> bytes:
        reader = cast("ProxyReader", self._proxy)
        result = reader.receive(data)
        if isinstance(result, NeedMore):
            return b""
        if isinstance(result, Malformed):
            log.warning("proxy-malformed", client=self._socket_peer.address, words=result.words)
            self._transport.abort()
            return b""
        if isinstance(result, Proxied):
            peer = Peer(result.source_address, result.source_port)
        else:
            peer = Peer(self._socket_peer.address, self._socket_peer.port, is_address_known=False)
        self._proxy = None
        self._begin(peer)
        return reader.rest

    def _start_tls(self) -> None:
        context = self._plan.tls() if self._plan.tls is not None else None
        if context is None:  # the certificate went with a reload
            self._transport.abort()
            return
        self._deadline = self._loop.time() + HANDSHAKE_SECONDS
        self._timeout = None
        self._tls = TlsLayer(context, server_side=True)
        self._tls.start()
        if not self._is_reading:
            self.resume()

    def _decrypt(self, data: bytes) -> bytes:
        tls = cast("TlsLayer", self._tls)
        try:
            plaintext = tls.receive(data)
        except TlsError as error:
            self._transport.write(tls.data_to_send())
            log.info("tls-failed", client=self._socket_peer.address, words=error.words)
            self._transport.close()
            self._phase = Phase.ENDED
            return b""
        pending = tls.data_to_send()
        if pending:
            self._transport.write(pending)
        if self._phase is Phase.HANDSHAKE and tls.is_handshake_done:
            self.engine.tls_started()
            self._handler.tls_started(tls.description)
            if self._plan.implicit_tls:
                self._greet()
            else:
                self._phase = Phase.TALKING
                self._arm()
        if tls.is_closed:
            if plaintext and self._phase is Phase.TALKING:
                self.engine.receive_data(plaintext)
                self._pump()
            self._transport.close()
            return b""
        return plaintext

    # Deadlines and the end.

    def _arm(self) -> None:
        """A deadline runs from the last command, or from the last few KB of content: an octet now and then does not move it."""
        engine = self.engine
        timeout, mark = engine.timeout, engine.timer_mark
        if timeout is self._timeout and mark == self._mark:
            return
        now = self._loop.time()
        if timeout is Timeout.CONTENT:
            if self._timeout is not Timeout.CONTENT:
                self._content_from = now
                self._content_seen = 0
            self._deadline = now + self._plan.timeouts.content
        else:
            self._deadline = now + self._plan.timeouts.command
        self._timeout, self._mark = timeout, mark

    def enforce_deadline(self, now: float) -> None:
        """Called every second: ends a connection whose time is over."""
        if self._phase is Phase.ENDED:
            return
        if self._phase is Phase.DRAINING:
            if now > self._deadline:
                self._transport.abort()
            return
        if self._hold or not self._is_reading:
            return  # it waits for us, not we for it
        if now > self._deadline:
            self.cut("you were silent for too long")
        elif self._timeout is Timeout.CONTENT:
            elapsed = now - self._content_from
            if elapsed > RATE_GRACE_SECONDS and self._content_seen < elapsed * self._plan.timeouts.minimum_rate:
                self.cut("the message came too slowly")

    def end_if_idle(self) -> None:
        """The server stops: says 421 unless a transaction is under way."""
        if self._phase is Phase.TALKING and self.engine.is_idle and not self._hold:
            self.cut("the server is stopping")
        elif self._phase in (Phase.PROXY, Phase.HANDSHAKE):
            self._transport.abort()

    def cut(self, why: str) -> None:
        """Says 421 with the reason and closes."""
        if self._phase is Phase.TALKING:
            self.engine.cut(Reply(421, "4.4.2", (f"Closing the connection: {why}",)))
            self._flush()
            self._end(Ending.CLOSE)
        elif self._phase is not Phase.ENDED:
            self._transport.abort()

    def _end(self, ending: Ending) -> None:
        """Closes after the last reply. With DRAIN the sending side is shut first and the rest read away for a little while:
        closing with unread octets would reset the connection, and the client would never see why (RFC 9293 3.10.4)."""
        if self._phase in (Phase.ENDED, Phase.DRAINING):
            return
        if self._tls is not None:
            self._tls.close()
            self._transport.write(self._tls.data_to_send())
        if ending is Ending.DRAIN:
            self._phase = Phase.DRAINING
            self._drained = 0
            self._deadline = self._loop.time() + DRAIN_SECONDS
            if not self._is_reading:
                self._transport.resume_reading()
            if self._transport.can_write_eof():
                self._transport.write_eof()
        else:
            self._phase = Phase.ENDED
            self._transport.close()


_MAPPED = "::ffff:"


def _peer_of(transport: asyncio.Transport) -> Peer:
    sock = cast("socket.socket", transport.get_extra_info("socket"))
    if sock.family == socket.AF_UNIX:
        _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return Peer("", 0, uid)
    name = transport.get_extra_info("peername")
    address, port = (name[0], name[1]) if name else ("", 0)
    if address.startswith(_MAPPED):
        address = address[len(_MAPPED) :]
    return Peer(address.partition("%")[0], port)
