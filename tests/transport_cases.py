"""Attempts, a feed, and servers that follow a script, for the tests of transports."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from posthouse.mail.envelope import Envelope, Origin, Recipient
from posthouse.mail.message import Content, ContentFile, Message
from posthouse.mail.outcome import Outcome
from posthouse.smtp.address import Path
from posthouse.smtp.event import BodyType, DotForm, Notify, Ret
from posthouse.transports.api import Attempt

TRACE = b"Received: from client.example.org; Tue, 24 Nov 2026 12:00:00 +0000\r\n"
BODY = b"Subject: hello\r\n\r\nHello.\r\n"


def path(text: str) -> Path:
    local_part, _, domain = text.rpartition("@")
    return Path(local_part.encode(), domain)


class NoGrant:
    """A stand-in: transports never look at grants, and only policy can make one."""


def recipient(address: str, notify: Notify = Notify.DEFAULT, original: str = "") -> Recipient:
    return Recipient(path(address), NoGrant(), notify, original)  # type: ignore[arg-type]


def attempt(
    *recipients: str | Recipient,
    reverse_path: str = "sender@example.org",
    body: bytes = BODY,
    dots: DotForm = DotForm.NONE,
    is_8bit: bool = False,
    smtputf8: bool = False,
    ret: Ret = Ret.DEFAULT,
    envelope_id: str = "",
    file: ContentFile | None = None,
    queue_id: int = 4711,
) -> Attempt:
    chosen = tuple(recipient(r) if isinstance(r, str) else r for r in recipients or ("user@example.net",))
    sender = path(reverse_path) if reverse_path else Path(b"", "")
    kind = BodyType.EIGHT_BIT_MIME if is_8bit else BodyType.SEVEN_BIT
    envelope = Envelope(queue_id, sender, chosen, Origin("192.0.2.9", "ESMTP"), 0, kind, smtputf8, ret, envelope_id)
    size = file.length if file else len(body)
    content = Content(size, dots, is_8bit, () if file else (body,), file)
    return Attempt(envelope, Message(TRACE, content), tuple(range(len(chosen))), sender)


class ListFeed:
    """Gives what it was made with, then what is added; keeps the outcomes by attempt, and insists on exactly one report."""

    def __init__(self, *attempts: Attempt) -> None:
        self.waiting = list(attempts)
        self.taken: list[Attempt] = []
        self.outcomes: dict[int, list[Outcome]] = {}
        self.order: list[Attempt] = []
        self.arrival = asyncio.Event()
        self.is_idle = asyncio.Event()

    def take(self) -> Attempt | None:
        if not self.waiting:
            return None
        self.taken.append(self.waiting.pop(0))
        return self.taken[-1]

    def add(self, *attempts: Attempt) -> None:
        self.waiting.extend(attempts)
        self.arrival.set()

    def report(self, attempt: Attempt, outcomes: Sequence[Outcome]) -> None:
        assert any(attempt is taken for taken in self.taken)
        assert id(attempt) not in self.outcomes, "reported twice"
        assert len(outcomes) == len(attempt.indices)
        self.outcomes[id(attempt)] = list(outcomes)
        self.order.append(attempt)

    async def wait(self, seconds: float) -> bool:
        if self.waiting:
            return True
        self.arrival.clear()
        if not seconds:
            return False
        self.is_idle.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.arrival.wait(), seconds)
        return bool(self.waiting)

    def of(self, attempt: Attempt) -> list[Outcome]:
        return self.outcomes[id(attempt)]

    def assert_all_reported(self) -> None:
        assert len(self.outcomes) == len(self.taken)


class Heard:
    """One connection to a scripted server: what it heard, and how it speaks."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.lines: list[str] = []
        self.contents: list[bytes] = []

    async def say(self, *lines: str) -> None:
        self.writer.write("".join(line + "\r\n" for line in lines).encode())
        await self.writer.drain()

    async def line(self) -> str:
        line = await self.reader.readline()
        if not line:
            raise ConnectionResetError
        self.lines.append(line.decode().rstrip("\r\n"))
        return self.lines[-1]

    def reset(self) -> None:
        self.writer.transport.abort()


Answer = str | Sequence[str] | Callable[[Heard, str], Awaitable[None]]


class ScriptedServer:
    """A polite server, but for what `answers` says for a verb: reply lines, or a function that does as it likes.

    Verbs: GREETING, EHLO, HELO, LHLO, MAIL, RCPT, DATA, CONTENT, QUIT, RSET, STARTTLS, AUTH. A list of replies is used up one
    by one, the last stays.
    """

    def __init__(self, offers: Sequence[str] = ("PIPELINING", "8BITMIME"), **answers: Answer | list[Answer]) -> None:
        self.offers = offers
        self.answers: dict[str, Answer | list[Answer]] = {
            "GREETING": "220 mx.example.net ESMTP",
            "HELO": "250 mx.example.net",
            "MAIL": "250 2.1.0 Ok",
            "RCPT": "250 2.1.5 Ok",
            "DATA": "354 Go ahead",
            "CONTENT": "250 2.0.0 Ok: queued as 12345",
            "RSET": "250 2.0.0 Ok",
            "QUIT": "221 2.0.0 Bye",
            **answers,
        }
        self.connections: list[Heard] = []
        self.port = 0

    @property
    def lines(self) -> list[str]:
        return [line for connection in self.connections for line in connection.lines]

    @property
    def contents(self) -> list[bytes]:
        return [content for connection in self.connections for content in connection.contents]

    async def _answer(self, heard: Heard, verb: str, line: str = "") -> bool:
        answer = self.answers.get(verb, "500 5.5.1 What?")
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            await answer(heard, line)
            return False
        lines = [answer] if isinstance(answer, str) else list(answer)
        await heard.say(*lines)
        return lines[-1].startswith("354")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard = Heard(reader, writer)
        self.connections.append(heard)
        try:
            await self._answer(heard, "GREETING")
            while True:
                line = await heard.line()
                verb = line.partition(" ")[0].upper()
                if verb in {"EHLO", "LHLO"} and verb not in self.answers:
                    offered = ["mx.example.net", *self.offers]
                    await heard.say(*(f"250-{offer}" for offer in offered[:-1]), f"250 {offered[-1]}")
                    continue
                wants_content = await self._answer(heard, verb, line)
                if verb == "DATA" and wants_content:
                    content = b""
                    while not (content == b".\r\n" or content.endswith(b"\r\n.\r\n")):
                        content += await reader.readuntil(b".\r\n")
                    heard.contents.append(content)
                    await self._answer(heard, "CONTENT", "")
                if verb == "QUIT":
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ScriptedServer"]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 22)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for connection in self.connections:
                connection.writer.close()
            await server.wait_closed()
