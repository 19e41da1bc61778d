"""The client side's driver: a ClientConnection on a socket, with TLS and deadlines; replies are awaited in order.

One object a connection and no task of its own. What the engine has to say is written in one go a flight; a large content is
read and written chunk by chunk, and never faster than the peer takes it. How long the peer is given is named by the engine
(RFC 5321 4.5.3.2) and armed here. TLS goes through a TlsLayer, never through the loop.
"""

import asyncio
import collections
import enum
import os
import ssl
import zlib
from collections.abc import Sequence
from typing import cast

import msgspec

from posthouse.net.tls import TlsError, TlsLayer
from posthouse.net.transcript import Transcript
from posthouse.smtp.client import (
    Answered,
    Asked,
    ClientConnection,
    ClientState,
    Farewell,
    Timeout,
)
from posthouse.smtp.event import DotForm, Verb
from posthouse.smtp.reply import Reply

CHUNK_OCTETS = 256 * 1024
"""Read from a content file, and at most waiting to be written, at once."""

WORDS = 500
"""Characters of what a peer said that a sentence of ours quotes."""

NO_REPLY = Reply(0, "", ("",))


class Endpoint(msgspec.Struct, frozen=True):
    """Where to connect: a literal IP address and port, or a Unix socket's path. `name` is the host name it was found by."""

    name: str
    address: str = ""
    port: int = 0
    socket_path: str = ""

    def __str__(self) -> str:
        if self.socket_path:
            return self.socket_path
        return f"{self.name or self.address} [{self.address}]:{self.port}"


class ClientTimeouts(msgspec.Struct, frozen=True):
    """Seconds the peer is given, by what it is waited for (RFC 5321 4.5.3.2). Connecting is ours to choose."""

    connect: float = 30.0
    tls: float = 60.0
    greeting: float = 300.0
    command: float = 300.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    content_block: float = 180.0
    content_end: float = 600.0
    quit: float = 5.0

    def by_name(self) -> dict[Timeout, float]:
        """Seconds by the engine's names."""
        return {
            Timeout.NONE: self.command,
            Timeout.GREETING: self.greeting,
            Timeout.COMMAND: self.command,
            Timeout.MAIL: self.mail,
            Timeout.RCPT: self.rcpt,
            Timeout.DATA: self.data,
            Timeout.CONTENT_BLOCK: self.content_block,
            Timeout.CONTENT_END: self.content_end,
            Timeout.TLS: self.tls,
        }


class Loss(enum.Enum):
    """How a peer was lost."""

    NOT_REACHED = "not-reached"
    CLOSED = "closed"
    TIMED_OUT = "timed-out"
    FAREWELL = "farewell"
    BROKEN = "broken"
    TLS = "tls"


class PeerLost(Exception):
    """The connection is of no use any more. `words` completes a sentence that begins with the peer's name."""

    def __init__(self, loss: Loss, words: str, reply: Reply = NO_REPLY) -> None:
        super().__init__(words)
        self.loss = loss
        self.words = words
        self.reply = reply
        """The 421 of a FAREWELL; code 0 otherwise."""


class ClientChannel(asyncio.Protocol):
    """One connection to one server. Made by `connect`; `engine` says what may be said, `flush` sends it."""

    def __init__(
        self,
        engine: ClientConnection,
        timeouts: ClientTimeouts,
        tls: TlsLayer | None = None,
        transcript: Transcript | None = None,
    ) -> None:
        self.engine = engine
        self.timeouts = timeouts
        self.tls_description = ""
        self._loop = asyncio.get_running_loop()
        self._seconds = timeouts.by_name()
        self._tls = tls
        self._transcript = transcript
        self._answers: collections.deque[Answered] = collections.deque()
        self._lost: PeerLost | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_full = False
        self._transport: asyncio.Transport

    @property
    def is_lost(self) -> bool:
        """Nothing more can be said or heard."""
        return self._lost is not None

    @property
    def local_address(self) -> str:
        """The address we come from; "" on a Unix socket."""
        name = self._transport.get_extra_info("sockname")
        return str(name[0]) if isinstance(name, tuple) else ""

    @property
    def certificate(self) -> bytes:
        """The server's certificate in DER, whatever it is worth; b"" without TLS."""
        return self._tls.peer_certificate if self._tls is not None else b""

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected; with implicit TLS the handshake begins."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=CHUNK_OCTETS)
        if self._tls is not None:
            self._tls.start()
            self._transport.write(self._tls.data_to_send())

    def data_received(self, data: bytes) -> None:
        """Octets from the server."""
        if self._lost is not None:
            return
        if self._tls is not None:
            data = self._decrypt(self._tls, data)
            if not data:
                return
        if self._transcript is not None:
            self._transcript.received(data)
        for event in self.engine.receive_data(data):
            if isinstance(event, Answered):
                self._answers.append(event)
            elif isinstance(event, Farewell):
                self._lose(PeerLost(Loss.FAREWELL, f"closed the session: {str(event.reply)[:WORDS]}", event.reply))
            else:
                self._lose(PeerLost(Loss.BROKEN, f"sent {event.words[:WORDS]}"))
        if self.engine.state is ClientState.BROKEN:
            self._lose(PeerLost(Loss.CLOSED, "refused the content before its end"))
        self._write(self.engine.data_to_send())
        self._wake()

    def eof_received(self) -> bool:
        """The server closed its side; there is no half-open session in SMTP."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        how = f"broke the connection ({_describe(exc)})" if isinstance(exc, OSError) else "closed the connection"
        self._lose(PeerLost(Loss.CLOSED, how))
        self._wake()

    def pause_writing(self) -> None:
        """The peer takes less than we have."""
        self._is_full = True

    def resume_writing(self) -> None:
        """The peer has taken what waited."""
        self._is_full = False
        self._wake()

    # --- the session's side

    async def answer(self) -> Answered:
        """The next reply with what it answers; replies that came before a loss come first. Raises PeerLost."""
        answers = self._answers
        if not answers:
            await self._wait(self.engine.timeout)
        return answers.popleft()

    def next_answer(self) -> Answered | None:
        """As `answer`, where it is there already: the replies to a group of commands mostly come together."""
        return self._answers.popleft() if self._answers else None

    def early_refusal(self) -> Reply | None:
        """The refusal that came before the content was sent whole, if the peer was lost by that."""
        while self._answers:
            answered = self._answers.popleft()
            if answered.asked is Asked.CONTENT and answered.reply.code >= 400:
                return answered.reply
        return None

    async def flush(self) -> None:
        """Sends what the engine has to say, all in one write; returns when no more than a chunk is left to be taken."""
        if self._lost is not None:
            raise self._lost
        self._write(self.engine.data_to_send())
        if self._is_full:
            await self._room()

    async def send_file(self, path: str, offset: int, length: int, dots: DotForm, checksum: int = -1) -> None:
        """Sends a part of a file as content, chunk by chunk. OSError when it can't be read, is too short, or is not what was
        written (its CRC-32 is not `checksum`): the peer has not got all of it then, and must not get the final dot."""
        found = 0
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while length:
                # What fits in one chunk is read at once, most likely from the page cache; a thread would take longer.
                if length <= CHUNK_OCTETS:
                    chunk = os.pread(descriptor, length, offset)
                else:
                    chunk = await self._loop.run_in_executor(None, os.pread, descriptor, CHUNK_OCTETS, offset)
                if not chunk:
                    raise OSError(f"{path} ends before octet {offset}")
                offset += len(chunk)
                length -= len(chunk)
                found = zlib.crc32(chunk, found)
                if not length and checksum not in (-1, found):
                    raise OSError(f"{path} is damaged")
                if self._lost is not None:
                    raise self._lost
                self.engine.content((chunk,), dots)
                await self.flush()
        finally:
            os.close(descriptor)

    async def start_tls(self, context: ssl.SSLContext, server_name: str) -> None:
        """Shakes hands after a positive reply to STARTTLS. Raises PeerLost with Loss.TLS when that fails."""
        if self._lost is not None:
            raise self._lost
        try:
            tls = TlsLayer(context, server_side=False, server_name=server_name)
            tls.start()
        except TlsError as error:
            self._lose(PeerLost(Loss.TLS, error.words))
            raise cast("PeerLost", self._lost) from error
        self._tls = tls
        self._transport.write(tls.data_to_send())
        while not tls.is_handshake_done:
            await self._wait(Timeout.TLS)

    async def quit(self) -> None:
        """Says QUIT and waits a little for the answer; then closes. Never raises PeerLost: there is nothing left to lose."""
        if self._lost is None and self.engine.state is ClientState.OPEN and not self.engine.owed:
            self.engine.quit()
            self._seconds = dict.fromkeys(self._seconds, self.timeouts.quit)
            try:
                await self.flush()
                await self.answer()
            except PeerLost:
                pass
        self.close()

    def close(self) -> None:
        """Closes in order: what waits to be sent is sent."""
        if self._lost is None and self._tls is not None:
            self._tls.close()
            self._transport.write(self._tls.data_to_send())
        self._lose(PeerLost(Loss.CLOSED, "was closed by us"), at_once=False)

    def abort(self) -> None:
        """Closes at once, whatever waits."""
        self._lose(PeerLost(Loss.CLOSED, "was closed by us"))
        self._transport.abort()

    # --- inside

    def _decrypt(self, tls: TlsLayer, data: bytes) -> bytes:
        try:
            plaintext = tls.receive(data)
        except TlsError as error:
            self._transport.write(tls.data_to_send())
            self._lose(PeerLost(Loss.TLS, f"failed at TLS: {error.words}"), at_once=False)
            self._wake()
            return b""
        pending = tls.data_to_send()
        if pending:
            self._transport.write(pending)
        if not self.tls_description and tls.is_handshake_done:
            self.tls_description = tls.description
            if self._transcript is not None:
                self._transcript.note(tls.description)
            if self.engine.state is ClientState.TLS_WANTED:
                self.engine.tls_started()
            self._wake()
        if tls.is_closed:
            # Replies in front of the close_notify still count; there is none behind it.
            self._loop.call_soon(self._end_of_tls)
        return plaintext

    def _end_of_tls(self) -> None:
        self._lose(PeerLost(Loss.CLOSED, "ended the TLS session"))
        self._wake()

    def _write(self, pieces: Sequence[bytes]) -> None:
        if not pieces or self._transport.is_closing():
            return
        if self._transcript is not None:
            self._transcript.sent(b"".join(pieces))
        if self._tls is None:
            self._transport.writelines(pieces)
            return
        try:
            self._tls.encrypt(b"".join(pieces))
        except TlsError as error:
            self._lose(PeerLost(Loss.TLS, f"failed at TLS: {error.words}"))
            return
        self._transport.write(self._tls.data_to_send())

    async def _room(self) -> None:
        while self._is_full:
            await self._wait(Timeout.CONTENT_BLOCK, for_room=True)

    async def _wait(self, awaited: Timeout, *, for_room: bool = False) -> None:
        """Until something happened: answers, the end of a handshake, room to write. PeerLost when the peer is lost first."""
        tls = self._tls
        timer = self._loop.call_later(self._seconds[awaited], self._time_out, awaited)
        try:
            while True:
                if self._lost is not None:
                    raise self._lost
                self._waiter = self._loop.create_future()
                await self._waiter
                if for_room:
                    if not self._is_full:
                        return
                elif self._answers or (awaited is Timeout.TLS and tls is not None and tls.is_handshake_done):
                    return
        finally:
            self._waiter = None
            timer.cancel()

    def _time_out(self, awaited: Timeout) -> None:
        what = {
            Timeout.CONTENT_BLOCK: "did not take the content",
            Timeout.TLS: "did not finish the TLS handshake",
            Timeout.GREETING: "did not greet",
        }.get(awaited, "did not answer")
        self._lose(PeerLost(Loss.TIMED_OUT, f"{what} within {self._seconds[awaited]:g} seconds"))
        self._wake()

    def _lose(self, lost: PeerLost, *, at_once: bool = True) -> None:
        """Notes the first loss; what the peer said before it stays to be read."""
        if self._lost is None:
            self._lost = lost
        if at_once and lost.loss is not Loss.FAREWELL:
            self._transport.abort()
        else:
            self._transport.close()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


async def connect(
    endpoint: Endpoint,
    timeouts: ClientTimeouts,
    *,
    dialect: Verb = Verb.EHLO,
    source_address: str = "",
    implicit_tls: ssl.SSLContext | None = None,
    transcript: Transcript | None = None,
) -> ClientChannel:
    """A connected channel; the greeting is still to come as its first answer. Raises PeerLost.

    `source_address` must be of the endpoint's family; a Unix socket has none.
    """
    loop = asyncio.get_running_loop()
    engine = ClientConnection(dialect)
    if transcript is not None:
        transcript.note(f"connecting to {endpoint}")
    try:
        tls = TlsLayer(implicit_tls, server_side=False, server_name=endpoint.name) if implicit_tls else None
        channel = ClientChannel(engine, timeouts, tls, transcript)
        async with asyncio.timeout(timeouts.connect):
            if endpoint.socket_path:
                await loop.create_unix_connection(lambda: channel, endpoint.socket_path)
            else:
                source = (source_address, 0) if source_address else None
                await loop.create_connection(lambda: channel, endpoint.address, endpoint.port, local_addr=source)
    except TimeoutError as error:
        raise PeerLost(Loss.NOT_REACHED, f"did not accept a connection within {timeouts.connect:g} seconds") from error
    except OSError as error:
        raise PeerLost(Loss.NOT_REACHED, f"cannot be reached: {_describe(error)}") from error
    except TlsError as error:
        raise PeerLost(Loss.TLS, error.words) from error
    return channel


def _describe(error: OSError) -> str:
    """The system's words without its numbers: "Connection refused"."""
    return os.strerror(error.errno).lower() if error.errno else str(error)
