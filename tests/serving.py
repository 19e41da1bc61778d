"""A real listener over loopback with real sessions and a memory spool; what is accepted is kept to be looked at."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from posthouse.net.listen import listen
from posthouse.net.server import ListenerPlan, Server, ServerProtocol, Timeouts
from posthouse.policy.facts import Role
from posthouse.policy.rules import compile_rules
from posthouse.relay.intake import Intake
from posthouse.relay.session import Desk, Session, Verified, Verify
from posthouse.smtp.server import ServerConnection, ServerSettings
from posthouse.spool.memory import MemorySpool

NOW = 1_800_000_000_000
RULES = {"trusted_networks": ["127.0.0.1"], "local_domains": ["here.test"], "relay_domains": ["dept.test"]}


class Kept:
    """Stands where the scheduler does, and only keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, Any]] = []

    def add(self, envelope: Any, message: Any) -> None:
        self.messages.append((envelope, message))

    @property
    def contents(self) -> list[bytes]:
        return [b"".join(message.content.pieces) for _, message in self.messages]


class Served:
    """What a test sees of the listener."""

    def __init__(self, server: Server, port: int, kept: Kept, spool: MemorySpool, desk: Desk) -> None:
        self.server, self.port, self.kept, self.spool, self.desk = server, port, kept, spool, desk

    async def connect(self, source: str = "127.0.0.1") -> "Talk":
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        return Talk(reader, writer)


class Talk:
    """The client's side, by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, *lines: str | bytes) -> None:
        for line in lines:
            self.writer.write(line if isinstance(line, bytes) else line.encode() + b"\r\n")
        await self.writer.drain()

    async def reply(self) -> str:
        """One reply, its lines joined; "" when the server has closed."""
        lines = []
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), 10)).decode()
            lines.append(line.rstrip())
            if line[3:4] != "-":
                return "\n".join(lines)

    async def say(self, line: str | bytes) -> str:
        await self.send(line)
        return await self.reply()

    async def hello(self) -> str:
        await self.reply()
        return await self.say("EHLO client.test")

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await self.writer.wait_closed()


async def right_is_secret(login: str, password: str, _client: str) -> Verified:
    await asyncio.sleep(0)
    return Verified(is_right=(login, password) == ("anna", "secret"))


@contextlib.asynccontextmanager
async def serving(
    *,
    rules: dict[str, Any] | None = None,
    settings: ServerSettings | None = None,
    timeouts: Timeouts | None = None,
    role: Role = Role.RELAY,
    verify: Verify = right_is_secret,
    most_per_client: int = 50,
    room_bytes: int = 1 << 40,
    listener: str = "test",
    open_spool: Callable[[], Any] | None = None,
    **plan: Any,
) -> AsyncIterator[Served]:
    kept = Kept()
    spool = (
        open_spool()
        if open_spool
        else MemorySpool(0, loop=asyncio.get_running_loop(), clock=lambda: NOW, room_bytes=room_bytes)
    )
    intake = Intake(spool, kept, lambda: NOW)  # type: ignore[arg-type]
    desk = Desk(role, "relay.test", listener, intake, compile_rules(**(rules or RULES)), lambda: NOW, verify)
    engine = settings or ServerSettings("relay.test", auth_mechanisms=("PLAIN", "LOGIN"))
    if plan.get("tls") is not None and not plan.get("implicit_tls"):
        engine = msgspec.structs.replace(engine, starttls=True)

    def make_handler(line: ServerProtocol) -> Session:
        return Session(desk, line, ServerConnection(engine))

    server = Server(most_per_client=most_per_client)
    sock = listen("127.0.0.1", 0)[0]
    sock.setblocking(False)
    await server.listen(sock, ListenerPlan(make_handler, timeouts or Timeouts(), **plan))
    try:
        yield Served(server, sock.getsockname()[1], kept, spool, desk)
    finally:
        await server.stop(0)
