"""JSON lines between the supervisor and a worker, either side asking and answering, over one socket pair.

A request is `{"id": 7, "verb": "prepare", "arguments": {...}}`; its answer `{"id": 7, "result": {...}}` or
`{"id": 7, "error": "one sentence"}`. Both sides count their own ids. `{"tell": "lease", "arguments": {...}}` is answered by
nothing; what is told is heard in its order, at once. `ping` is answered here, without the handler: an
answer proves that the other side's event loop turns. A second socket pair beside it carries listening sockets
(SCM_RIGHTS), since a stream reader would drop them: they are sent before the request that speaks of them.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from posthouse.observe import log

Handler = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]
"""Answers a request: verb and arguments in, the result out. ChannelRefusal tells the other side a sentence."""

Heard = Callable[[str, dict[str, Any]], None]
"""Hears what is told: verb and arguments, in the order in which they were told. It must not block."""

_LONGEST_LINE = (
    256 * 1024 * 1024
)  # a configuration with a long recipient list or a metrics snapshot; the peer is ourselves
_MOST_SOCKETS = 64  # in one message; the kernel's limit is 253


class ChannelRefusal(Exception):
    """The other side understood and says no; the sentence says why and what to do."""


class ChannelClosed(Exception):
    """The other side is gone; a request under way may or may not have been carried out."""


class Channel:
    """One end. Make it with `Channel.over`; use it from one event loop.

    `closed` is set when the other side is gone: a worker ends then, so that it never outlives its supervisor.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handler: Handler,
        sockets: socket.socket | None,
    ) -> None:
        self.closed = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._handler = handler
        self.heard: Heard = _nobody_hears
        """Set it before the other side may tell anything."""
        self._sockets = sockets
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last_id = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def over(cls, connection: socket.socket, handler: Handler, sockets: socket.socket | None = None) -> "Channel":
        """A channel over a connected stream socket, which it owns from now on, as it does `sockets`, the way for sockets."""
        connection.setblocking(False)
        if sockets is not None:
            sockets.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=connection, limit=_LONGEST_LINE)
        return cls(reader, writer, handler, sockets)

    async def request(self, verb: str, *, timeout: float = 30.0, **arguments: Any) -> dict[str, Any]:  # noqa: ASYNC109
        """Asks the other side and waits `timeout` seconds. ChannelRefusal, ChannelClosed, TimeoutError."""
        if self.closed.is_set():
            raise ChannelClosed(f"nobody is there to answer {verb}")
        self._last_id += 1
        request_id = self._last_id
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[request_id] = answer
        try:
            self._send({"id": request_id, "verb": verb, "arguments": arguments})
            async with asyncio.timeout(timeout):
                return await answer
        finally:
            self._waiting.pop(request_id, None)

    def tell(self, verb: str, arguments: object) -> None:
        """Says something that is not answered; lost when nobody is there. `arguments`: a dict or a struct."""
        if not self.closed.is_set():
            self._send({"tell": verb, "arguments": arguments})

    def send_sockets(self, listening: list[socket.socket]) -> None:
        """Hands open sockets to the other side, ahead of the request that says what they are for. OSError."""
        if self._sockets is None:
            raise ChannelClosed("this channel has no way for sockets")
        for start in range(0, len(listening), _MOST_SOCKETS):
            numbers = [one.fileno() for one in listening[start : start + _MOST_SOCKETS]]
            socket.send_fds(self._sockets, [b"s" * len(numbers)], numbers)

    async def take_sockets(self, count: int) -> list[socket.socket]:
        """The next `count` sockets that the other side has sent; call it when a request speaks of them. ChannelClosed.

        They were sent before that request, so they are there: nothing is waited for.
        """
        if self._sockets is None:
            raise ChannelClosed("this channel has no way for sockets")
        taken: list[socket.socket] = []
        while len(taken) < count:
            wanted = min(_MOST_SOCKETS, count - len(taken))
            try:
                _data, numbers, _flags, _address = socket.recv_fds(self._sockets, wanted, wanted)
            except OSError:
                numbers = []
            taken.extend(socket.socket(fileno=number) for number in numbers)
            if not numbers:
                for one in taken:
                    one.close()
                raise ChannelClosed("fewer sockets came than were announced")
        return taken

    def close(self) -> None:
        """Ends it; requests under way get ChannelClosed."""
        self._reading.cancel()
        self._end()

    def _send(self, document: dict[str, Any]) -> None:
        self._writer.write(msgspec.json.encode(document) + b"\n")

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                self._take(msgspec.json.decode(line))
        except ConnectionError:
            pass  # a process that was killed with something unread: an end like another
        except (msgspec.DecodeError, ValueError) as error:
            log.error("channel-broken", error=str(error))
        finally:
            self._end()

    def _take(self, document: dict[str, Any]) -> None:
        if "verb" in document:
            task = asyncio.create_task(self._answer(document))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        if "tell" in document:
            try:
                self.heard(document["tell"], document["arguments"])
            except Exception as error:  # noqa: BLE001, RUF100 - as in `_answer`
                log.exception("channel-verb-failed", error, verb=document["tell"])
            return
        waiting = self._waiting.get(document["id"])
        if waiting is None or waiting.done():
            return  # asked, timed out, answered late
        if "error" in document:
            waiting.set_exception(ChannelRefusal(document["error"]))
        else:
            waiting.set_result(document["result"])

    async def _answer(self, document: dict[str, Any]) -> None:
        verb = document["verb"]
        answer: dict[str, Any] = {"id": document["id"]}
        try:
            answer["result"] = {} if verb == "ping" else await self._handler(verb, document["arguments"])
        except ChannelRefusal as refusal:
            answer["error"] = str(refusal)
        except Exception as error:  # noqa: BLE001, RUF100 - the rim: a bug in one verb must not end the process, and is told
            log.exception("channel-verb-failed", error, verb=verb)
            answer["error"] = f"{verb} failed: {type(error).__name__}: {error}"
        if not self.closed.is_set():
            self._send(answer)

    def _end(self) -> None:
        if self.closed.is_set():
            return
        self.closed.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ChannelClosed("the other side is gone"))
        with contextlib.suppress(RuntimeError):  # the loop may be closing
            self._writer.close()
        if self._sockets is not None:
            self._sockets.close()


def _nobody_hears(verb: str, arguments: dict[str, Any]) -> None:
    del arguments
    log.error("channel-verb-unknown", verb=verb)
