"""Mail servers that behave badly, or that leave just one door open: small ones, made for the tester's tests.

`Manners` is an SMTP server for here.test that refuses to relay; a subclass changes what it must to be rude or careless. What
was accepted is kept: `relayed` holds the forward-paths of other people's domains, with their messages.
"""

import asyncio
import contextlib
import queue
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

HERE = "here.test"
OWN = ("here.test", "mx.here.test", "[127.0.0.1]", "localhost")

Raw = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Closed(Exception):
    """The server hangs up."""


class Manners:
    """One connection. Override what differs; every hook answers a reply's text."""

    greeting = "220 mx.here.test ESMTP"
    offers: tuple[str, ...] = ("PIPELINING", "8BITMIME", "SMTPUTF8", "CHUNKING")
    relay_denied = "550 5.7.1 relaying denied"

    def __init__(self, world: "World", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.world, self.reader, self.writer = world, reader, writer
        self.hello = ""
        self.tls = False
        self.reverse_path: str | None = None
        self.forward_paths: list[str] = []
        self.errors = 0
        self.number = world.connections

    async def run(self) -> None:
        await self.greet()
        while True:
            line = await self.line()
            await self.say(await self.command(line))

    async def greet(self) -> None:
        await self.say(self.greeting)

    async def line(self) -> str:
        octets = await self.reader.readuntil(b"\r\n")
        return octets[:-2].decode("utf-8", "surrogateescape")

    async def say(self, reply: str) -> None:
        if not reply:
            return
        if reply[0] in "45":
            self.errors += 1
            await self.before_error(reply)
        self.writer.write(reply.encode() + b"\r\n")
        await self.writer.drain()

    async def before_error(self, reply: str) -> None:
        """Where a tarpit waits."""

    async def command(self, line: str) -> str:
        verb = line[:4].upper()
        if verb in ("EHLO", "HELO"):
            self.hello, self.reverse_path = line[5:].strip(), None
            lines = ["mx.here.test", *(self.offers if verb == "EHLO" else ())]
            return "\r\n".join(f"250{'-' if i < len(lines) - 1 else ' '}{one}" for i, one in enumerate(lines))
        if verb == "MAIL":
            self.reverse_path, self.forward_paths = line[10:], []
            return self.mail(line[10:])
        if verb == "RCPT":
            return self._rcpt(line[8:])
        if verb == "DATA":
            return await self._data()
        if verb == "BDAT":
            return await self._bdat(line)
        if verb == "RSET":
            self.reverse_path, self.forward_paths = None, []
            return "250 2.0.0 ok"
        if verb == "QUIT":
            await self.say("221 2.0.0 bye")
            raise Closed
        return await self.other(line)

    async def other(self, line: str) -> str:
        return "502 5.5.1 what?"

    def mail(self, path: str) -> str:
        return "250 2.1.0 ok"

    def _rcpt(self, path: str) -> str:
        if self.reverse_path is None:
            return "503 5.5.1 MAIL first"
        reply = self.rcpt(path)
        if reply.startswith("25"):
            self.forward_paths.append(path)
        return reply

    def rcpt(self, path: str) -> str:
        return "250 2.1.5 ok" if self.is_ours(path) or self.is_let_through(path) else self.relay_denied

    def is_ours(self, path: str) -> bool:
        """By the book: what stands behind the last @, and nothing odd in front of it."""
        found = re.fullmatch(r"<([a-z0-9.-]+)(?:@([^@>]+))?>", path, re.IGNORECASE)
        if not found:
            return False
        local, domain = found.group(1).lower(), (found.group(2) or HERE).lower()
        return domain in OWN and local == "postmaster"

    def is_let_through(self, path: str) -> bool:
        """The door that stands open."""
        return False

    async def _data(self) -> str:
        if not self.forward_paths:
            return "554 5.5.1 no valid recipients"
        refusal = self.data()
        if refusal:
            return refusal
        await self.say("354 go on")
        content = await self.content()
        return self.accept(content)

    async def content(self) -> bytes:
        return await self.reader.readuntil(b"\r\n.\r\n")

    def data(self) -> str:
        return ""

    async def _bdat(self, line: str) -> str:
        content = await self.reader.readexactly(int(line.split()[1]))
        return (self.data() or self.accept(content)) if self.forward_paths else "503 5.5.1 no recipients"

    def accept(self, content: bytes) -> str:
        self.world.relayed += [(path, content) for path in self.forward_paths if not self.is_ours(path)]
        self.reverse_path, self.forward_paths = None, []
        return "250 2.0.0 queued"


class World:
    """One server."""

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self.at_once = 0
        self.most_at_once = 0
        self.relayed: list[tuple[str, bytes]] = []
        self.seen: dict[str, float] = {}


@contextlib.asynccontextmanager
async def serving(behaviour: "type[Manners] | Raw", address: str = "127.0.0.1") -> AsyncIterator[World]:
    """A server that behaves so, for as long as the block."""
    world = World()
    open_now: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_now.add(task)
        world.connections += 1
        world.at_once += 1
        world.most_at_once = max(world.most_at_once, world.at_once)
        try:
            if isinstance(behaviour, type):
                await behaviour(world, reader, writer).run()
            else:
                await behaviour(reader, writer)
        except (Closed, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except asyncio.CancelledError:
            pass
        finally:
            world.at_once -= 1
            open_now.discard(task)
            writer.transport.abort() if writer.transport.get_write_buffer_size() > 1 << 16 else writer.close()

    server = await asyncio.start_server(serve, address, 0)
    world.port = server.sockets[0].getsockname()[1]
    try:
        yield world
    finally:
        server.close()
        for task in list(open_now):
            task.cancel()
        if open_now:
            await asyncio.wait(open_now, timeout=5)


@contextlib.contextmanager
def serving_beside(behaviour: "type[Manners] | Raw") -> Iterator[World]:
    """The same on a thread of its own, for a command that has its own event loop."""
    started: queue.Queue[tuple[World, asyncio.AbstractEventLoop, asyncio.Event]] = queue.Queue()

    async def run() -> None:
        async with serving(behaviour) as world:
            done = asyncio.Event()
            started.put((world, asyncio.get_running_loop(), done))
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    world, loop, done = started.get(timeout=10)
    try:
        yield world
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(timeout=10)
