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

DRAIN_SECONDS = 2.0
"""A client that was told the end and is silent for so long is cut."""

DRAIN_MOST_SECONDS = 20.0
DRAIN_OCTETS = 1 << 26
"""So much, and so long, a client may go on sending what nobody reads any more: a device that looks at replies only at the end
of its message must see ours, or it will send that message for ever."""

HANDSHAKE_SECONDS = 30.0
RATE_GRACE_SECONDS = 60.0
MOST_BUFFERED = 256 * 1024
"""Octets that may wait for a reply of ours before we stop reading the client."""

EVENTS_A_TURN = 200
"""What one client may have us do before others have their turn; so many replies are the most that wait to be written."""


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
    """Our side is shut; what still comes is read away, so that the last reply is not lost to a reset."""
    CLOSING = "closing"
    """Closed, but the last octets are not out."""
    ENDED = "ended"


# Bound here because an attribute of an enum class costs ten times a module's, and each event asks for several.
_PROXY, _TALKING, _DRAINING = Phase.PROXY, Phase.TALKING, Phase.DRAINING
_NOT_YET = Ending.NOT_YET
_CONTENT = Timeout.CONTENT


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


class House(Protocol):
    """What a connection asks of the server that all connections share."""

    connections: "dict[ServerProtocol, None]"
    is_stopping: bool
    heard: int
    """How often octets have come from a client."""

    @property
    def is_flooded(self) -> bool:
        """There are so many connections that a further one gets not even a 421."""

    def admit(self, client: str) -> str:
        """ "" when one more connection from `client` is within the limits, else the sentence for the 421."""

    def release(self, client: str) -> None:
        """A connection that `admit` counted is gone."""


class ListenerPlan(msgspec.Struct, frozen=True, eq=False):
    """How connections of one listener begin. `is_proxy` knows the addresses that may speak PROXY; None: PROXY isn't spoken.
    `is_exempt` knows those from which any number of connections may come."""

    make_handler: Callable[["ServerProtocol"], Handler]
    timeouts: Timeouts
    tls: Callable[[], ssl.SSLContext | None] | None = None
    implicit_tls: bool = False
    is_proxy: Callable[[str], bool] | None = None
    is_exempt: Callable[[str], bool] = lambda _address: False


class ServerProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, house: House, plan: ListenerPlan) -> None:
        self._house = house
        self._plan = plan
        self._phase = Phase.ENDED
        self._tls: TlsLayer | None = None
        self._proxy: ProxyReader | None = None
        self._refusal = ""
        self.admitted: str | None = None
        """Whose connection it is counted as; None when it is not."""
        self._deadline = 0.0
        self._timeout: Timeout | None = None
        self._mark = -1
        self._content_from = 0.0
        self._content_seen = 0
        self._drained = 0
        self._drain_end = 0.0
        # The client is read unless one of these stands against it.
        self._is_reading = True
        self._is_congested = False
        self._is_unread = False
        self._late_flush: asyncio.TimerHandle | None = None
        # The handler owes an answer.
        self._hold = False
        # Events are left that wait for this client's next turn.
        self._turn: asyncio.Handle | None = None

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)
        self._loop = asyncio.get_running_loop()
        self._house.connections[self] = None
        self._socket_peer = self.peer = _peer_of(self._transport)
        self._handler = self._plan.make_handler(self)
        self.engine = self._handler.engine
        self._deadline = self._loop.time() + HANDSHAKE_SECONDS
        if self._house.is_flooded:
            metrics.sessions_refused.inc("connections")
            self.abort()
        elif self._plan.is_proxy is None:
            self._begin(self._socket_peer)
        elif not self._socket_peer.address or not self._plan.is_proxy(self._socket_peer.address):
            log.warning("proxy-refused", client=self._socket_peer.address)
            self.abort()
        else:
            self._proxy = ProxyReader()
            self._phase = _PROXY

    def _begin(self, peer: Peer) -> None:
        """The client is known: counted before anything is done for it, a TLS handshake above all."""
        self.peer = peer
        counted_as = (
            "" if peer.is_address_known and peer.address and self._plan.is_exempt(peer.address) else peer.address
        )
        self._refusal = self._house.admit(counted_as)
        if not self._refusal:
            self.admitted = counted_as
        if not self._plan.implicit_tls or self._plan.tls is None:
            self._greet()
        elif self._refusal or self._house.is_stopping:
            self.abort()
        else:
            self._start_tls()

    def _greet(self) -> None:
        self._phase = _TALKING
        if self._refusal:
            self.engine.greet(Reply(421, "4.3.2", (self._refusal,)))
        elif self._house.is_stopping:
            self.engine.greet(Reply(421, "4.3.2", ("The server is stopping; try again later",)))
        else:
            self.engine.greet(self._handler.connected(self.peer))
        self._after_events()

    def data_received(self, data: bytes) -> None:
        """Octets from the client."""
        self._house.heard += 1
        if self._phase is _PROXY:
            data = self._read_proxy(data)
        if self._phase is _DRAINING:
            self._drain(len(data))
            return
        if self._tls is not None:
            data = self._decrypt(data)
        if data and self._phase is _TALKING:
            self._content_seen += len(data)
            self.engine.receive_data(data)
            if self._turn is None:
                self._pump()
            else:
                self._steer_reading()

    def eof_received(self) -> bool:
        """The client has half-closed: what it asked is still answered."""
        if self._phase is _TALKING:
            self._receive_eof()
        return self._phase is _TALKING

    def _receive_eof(self) -> None:
        self.engine.receive_eof()
        if self._turn is None:
            self._pump()

    def pause_writing(self) -> None:
        """The client does not read our replies: it gets none more, and is cut when it goes on like that."""
        self._is_unread = True
        self._deadline = self._loop.time() + self._plan.timeouts.command
        self._steer_reading()

    def resume_writing(self) -> None:
        """The client has read our replies."""
        self._is_unread = False
        if self._phase is _TALKING:
            self._arm_anew()
            if self._turn is None:
                self._pump()

    def connection_lost(self, _exc: Exception | None) -> None:
        """The connection is gone."""
        self._phase = Phase.ENDED
        self._house.connections.pop(self, None)
        for handle in (self._late_flush, self._turn):
            if handle is not None:
                handle.cancel()
        if self.admitted is not None:
            self._house.release(self.admitted)
        self._handler.closed()
        del self._handler  # it knows us too, and the garbage collector would come only for many of such pairs

    # The engine's side.

    def answer(self, reply: Reply) -> None:
        """The reply to the event for which the handler had none at once."""
        self._hold = False
        if self._phase is not _TALKING:
            return
        self.engine.reply(reply)
        self._pump()

    def pause(self) -> None:
        """Stops reading the client (a large content waits for the disk)."""
        self._is_congested = True
        self._steer_reading()

    def resume(self) -> None:
        """Reads the client again."""
        self._is_congested = False
        if self._phase is _TALKING:
            self._arm_anew()  # the silence was ours
            self._steer_reading()

    def _pump(self) -> None:
        """Has the engine go on, for one turn; not while the client reads nothing of what it is told."""
        if self._is_unread:
            self._after_events()
            return
        engine = self.engine
        handle = self._handler.handle
        for _ in range(EVENTS_A_TURN):
            event = engine.next_event()
            if isinstance(event, Signal):
                break
            if event.needs_reply:
                reply = handle(event)
                if reply is None:
                    self._hold = True
                    break
                engine.reply(reply)
            else:
                handle(event)
                if type(event) is TlsWanted:
                    self._flush()
                    self._start_tls()
                    return
        else:
            self._turn = self._loop.call_soon(self._take_turn)
        self._after_events()

    def _take_turn(self) -> None:
        self._turn = None
        if self._phase is _TALKING and not self._is_unread and self._late_flush is None:
            self._pump()

    def _after_events(self) -> None:
        engine = self.engine
        delay = engine.delay
        if delay > 0:
            if self._late_flush is None:
                self._late_flush = self._loop.call_later(delay, self._flush_late)
            self._steer_reading()
            return
        self._flush()
        if engine.ending is not _NOT_YET and self._turn is None:
            self._end(engine.ending)
        elif self._phase is _TALKING:
            if not self._is_reading or engine.buffered_bytes > MOST_BUFFERED:
                self._steer_reading()
            self._arm()

    def _flush_late(self) -> None:
        self._late_flush = None
        if self._phase is _TALKING:
            self.engine.delay_is_over()
            self._pump()

    def _steer_reading(self) -> None:
        """Reads the client, or not: not while it waits for us, or does not read what we say."""
        wanted = self._phase is not _TALKING or not (
            self._is_congested
            or self._is_unread
            or self._late_flush is not None
            or self.engine.buffered_bytes > MOST_BUFFERED
        )
        if wanted is self._is_reading or self._phase is Phase.ENDED:
            return
        self._is_reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _flush(self) -> None:
        data = self.engine.data_to_send()
        if not data:
            return
        if self._tls is not None:
            try:
                self._tls.encrypt(data)
            except TlsError as error:
                log.info("tls-failed", client=self.peer.address, words=error.words)
                self.abort()
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
            self.abort()
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
            self.abort()
            return
        self._phase = Phase.HANDSHAKE
        self._deadline = self._loop.time() + HANDSHAKE_SECONDS
        self._timeout = None
        self._tls = TlsLayer(context, server_side=True)
        self._tls.start()
        self._steer_reading()

    def _decrypt(self, data: bytes) -> bytes:
        """The plaintext for the engine. After close_notify there is none: what the client asked before is still answered."""
        tls = cast("TlsLayer", self._tls)
        try:
            plaintext = tls.receive(data)
        except TlsError as error:
            log.info("tls-failed", client=self.peer.address, words=error.words)
            self._transport.write(tls.data_to_send())
            self._close()
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
                self._phase = _TALKING
                self._arm()
        if not tls.is_closed:
            return plaintext
        if self._phase is _TALKING:
            self.engine.receive_data(plaintext)
            self._receive_eof()
        elif self._phase is Phase.HANDSHAKE:
            self.abort()
        return b""

    # Deadlines and the end.

    def _arm(self) -> None:
        """A deadline runs from the last command, or from the last few KB of content: an octet now and then does not move it."""
        engine = self.engine
        timeout, mark = engine.timeout, engine.timer_mark
        if timeout is self._timeout and mark == self._mark:
            return
        now = self._loop.time()
        if timeout is _CONTENT:
            if self._timeout is not _CONTENT:
                self._content_from = now
                self._content_seen = 0
            self._deadline = now + self._plan.timeouts.content
        else:
            self._deadline = now + self._plan.timeouts.command
        self._timeout, self._mark = timeout, mark

    def _arm_anew(self) -> None:
        self._timeout = None
        self._arm()

    def enforce_deadline(self, now: float) -> None:
        """Called every second: ends a connection whose time is over."""
        if now > self._deadline:
            if self._phase is not _TALKING:
                self.abort()
            elif self._is_unread:
                log.info("session-cut", client=self.peer.address, words="the client does not read our replies")
                self.abort()
            elif not self._hold and self._is_reading:  # else it waits for us, not we for it
                self.cut("you were silent for too long")
        elif self._timeout is _CONTENT and self._phase is _TALKING and not self._hold and self._is_reading:
            elapsed = now - self._content_from
            if elapsed > RATE_GRACE_SECONDS and self._content_seen < elapsed * self._plan.timeouts.minimum_rate:
                self.cut("the message came too slowly")

    def end_if_idle(self, why: str, *, may_send_content: bool) -> bool:
        """Says 421 unless an answer is owed for what came whole, or a content may still arrive; whether it ends now."""
        if self._phase in (_PROXY, Phase.HANDSHAKE):
            self.abort()
            return True
        is_owed = self._hold or self._turn is not None
        if self._phase is not _TALKING or is_owed or (may_send_content and self._timeout is _CONTENT):
            return False
        self.cut(why)
        return True

    def cut(self, why: str) -> None:
        """Says 421 with the reason and closes."""
        if self._phase is not _TALKING:
            return
        log.info("session-cut", client=self.peer.address, words=why)
        self.engine.cut(Reply(421, "4.4.2", (f"Closing the connection: {why}",)))
        self._flush()
        self._end(Ending.DRAIN)

    def abort(self) -> None:
        """Closes at once, whatever is still to be written."""
        self._phase = Phase.ENDED
        self._transport.abort()

    def _end(self, ending: Ending) -> None:
        """Closes after the last reply. With DRAIN the sending side is shut first and the rest read away for a little while:
        closing with unread octets would reset the connection, and the client would never see why (RFC 9293 3.10.4)."""
        if self._phase is not _TALKING:
            return
        if self._tls is not None:
            self._tls.close()
            self._transport.write(self._tls.data_to_send())
        if ending is Ending.DRAIN:
            self._phase = _DRAINING
            now = self._loop.time()
            self._deadline, self._drain_end = now + DRAIN_SECONDS, now + DRAIN_MOST_SECONDS
            self._steer_reading()
            try:
                self._transport.write_eof()
            except OSError:  # the client is gone: nothing can be shut any more
                self.abort()
        else:
            self._close()

    def _drain(self, octets: int) -> None:
        self._drained += octets
        if self._drained > DRAIN_OCTETS:
            self.abort()
        elif not self._house.is_stopping:
            self._deadline = min(self._loop.time() + DRAIN_SECONDS, self._drain_end)

    def _close(self) -> None:
        """Closes once everything is written, or when the client has not read it for a while."""
        self._phase = Phase.CLOSING
        self._deadline = self._loop.time() + DRAIN_SECONDS
        self._transport.close()


_MAPPED = "::ffff:"
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid; a uid may be beyond 2^31


def _peer_of(transport: asyncio.Transport) -> Peer:
    name = transport.get_extra_info("peername")
    if not isinstance(name, tuple):
        sock = cast("socket.socket", transport.get_extra_info("socket"))
        if sock.family != socket.AF_UNIX:
            return Peer("", 0)  # no name: the client is gone already
        _pid, uid, _gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return Peer("", 0, uid)
    address, port = name[0], name[1]
    if address.startswith(_MAPPED):
        address = address[len(_MAPPED) :]
    return Peer(address.partition("%")[0], port)
