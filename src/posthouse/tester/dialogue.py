"""One connection of a test: a ClientConnection on a socket, with its times noted and its peer's talk bounded.

The peer may be anything: it may close, lie, say nothing, or send without an end. Each of these is a PeerLost with words, within
the time and the octets that it was given.
"""

import ssl
import time
from collections.abc import Callable

import msgspec

from posthouse.net.client import ClientChannel, ClientTimeouts, Endpoint, Loss, PeerLost, connect
from posthouse.net.transcript import Transcript
from posthouse.smtp.client import ClientState
from posthouse.smtp.event import DotForm
from posthouse.smtp.extension import NO_OFFERS, Offers
from posthouse.smtp.reply import Reply

MOST_OCTETS = 128 * 1024
"""What one connection may send us in all. An ordinary one sends ten kilobytes."""

KEPT_OCTETS = 64 * 1024
"""What a transcript keeps of one connection."""

WORDS = 500
"""Characters of a reply that a report keeps."""

Hear = Callable[[str], None]


def nobody_hears(_line: str) -> None:
    """For a dialogue that nobody watches."""


class Patience(msgspec.Struct, frozen=True):
    """Seconds that a host is given: to accept a connection, to answer, to answer the end of the content."""

    connect: float = 10.0
    answer: float = 60.0
    content_end: float = 120.0
    quit: float = 2.0

    def within(self, seconds: float) -> ClientTimeouts:
        """No wait is longer than `seconds`."""
        answer = max(0.1, min(self.answer, seconds))
        return ClientTimeouts(
            connect=max(0.1, min(self.connect, seconds)),
            tls=answer,
            greeting=answer,
            command=answer,
            mail=answer,
            rcpt=answer,
            data=answer,
            content_block=answer,
            content_end=max(0.1, min(self.content_end, seconds)),
            quit=min(self.quit, answer),
        )


class TimedTranscript(Transcript):
    """Lines with the seconds since the test began; of what is beyond `keeps` octets only the number of lines is kept.

    `on_flood` is called once, when more than MOST_OCTETS have come.
    """

    def __init__(self, began: float, hear: Hear, keeps: int = KEPT_OCTETS) -> None:
        super().__init__()
        self.on_flood: Callable[[], None] = lambda: None
        self.is_flooded = False
        self.kept_octets = 0
        self._keeps = keeps
        self._is_idle = not keeps and hear is nobody_hears
        self._octets_received = 0
        self.hides_sent = False
        """What is sent now is content: not kept."""
        self._began = began
        self._hear = hear
        self._left_out = 0
        self._timed: list[str] = []

    def note(self, words: str) -> None:
        """Something that is no line of either side."""
        if not self._is_idle:
            super().note(words)
            self._stamp()

    def sent(self, octets: bytes) -> None:
        """Whole lines of ours."""
        if self.hides_sent or self._is_idle:
            return
        super().sent(octets)
        self._stamp()

    def received(self, octets: bytes) -> None:
        """Octets of theirs, however they are cut."""
        self._octets_received += len(octets)
        if self.is_flooded:
            return
        if not self._is_idle:
            super().received(octets[:MOST_OCTETS])
            self._stamp()
        if self._octets_received > MOST_OCTETS:
            self.is_flooded = True
            self.on_flood()

    def _stamp(self) -> None:
        at = time.monotonic() - self._began
        for line in self.lines:
            timed = f"{at:8.3f} {line}"
            self._hear(timed)
            if self.kept_octets < self._keeps:
                self.kept_octets += len(timed)
                self._timed.append(timed)
            else:
                self._left_out += 1
        self.lines.clear()

    def finished(self) -> tuple[str, ...]:
        """All lines."""
        tail = (f"-- {self._left_out} further lines were left out",) if self._left_out else ()
        return (*self._timed, *tail)


class Approach(msgspec.Struct, frozen=True):
    """How to connect: where to, from where, how long to wait, with TLS from the first octet or not."""

    endpoint: Endpoint
    source_address: str = ""
    patience: Patience = Patience()
    implicit_tls: ssl.SSLContext | None = None


class Dialogue:
    """One connection. `ask` and its like raise PeerLost; nothing else goes wrong here."""

    def __init__(self, channel: ClientChannel, transcript: TimedTranscript) -> None:
        self.channel = channel
        self.transcript = transcript
        self.greeting: Reply | None = None
        self.hello_reply: Reply | None = None
        self.is_clean = True
        """No transaction is under way: MAIL may come."""
        self.slowest_seconds = 0.0

    @property
    def offers(self) -> Offers:
        """What the last EHLO offered."""
        return self.channel.engine.offers if self.hello_reply is not None else NO_OFFERS

    @property
    def is_lost(self) -> bool:
        """Nothing more can be said."""
        return self.channel.is_lost

    async def is_hung_up(self) -> bool:
        """The peer has closed behind what it said. NOOP finds out: an end of the connection may still be on its way."""
        try:
            await self.ask(b"NOOP")
        except PeerLost:
            return True
        return False

    async def answer(self) -> Reply:
        """The next reply. PeerLost, also when the peer has said more than MOST_OCTETS."""
        began = time.monotonic()
        try:
            answered = await self.channel.answer()
        except PeerLost as lost:
            if self.transcript.is_flooded:
                raise PeerLost(Loss.BROKEN, f"sent more than {MOST_OCTETS >> 10} kB and was cut off") from lost
            raise
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - began)
        return shortened(answered.reply)

    async def greet(self) -> Reply:
        """The greeting."""
        await self.channel.flush()
        self.greeting = await self.answer()
        return self.greeting

    async def hello(self, name: str) -> Reply:
        """EHLO, or HELO where that isn't known."""
        self.channel.engine.hello(name)
        await self.channel.flush()
        self.hello_reply = await self.answer()
        self.is_clean = True
        return self.hello_reply

    async def ask(self, line: bytes) -> Reply:
        """One line and its reply."""
        self.channel.engine.raw(line + b"\r\n")
        await self.channel.flush()
        return await self.answer()

    async def say(self, octets: bytes, replies: int) -> None:
        """Octets as they are; so many replies can be had by `answer`."""
        self.channel.engine.raw(octets, replies)
        await self.channel.flush()

    def withdraw(self) -> None:
        """An answer that is still awaited will not come."""
        self.channel.engine.withdraw()

    async def reset(self) -> Reply:
        """RSET."""
        self.is_clean = True
        return await self.ask(b"RSET")

    async def content(self, message: bytes) -> Reply:
        """The content after a 354, and what is said to it."""
        self.channel.engine.content((message,), DotForm.PLAIN)
        self.channel.engine.end_content()
        await self._send_hidden(f"the probe, {len(message)} octets, and the final dot")
        return await self.answer()

    async def chunk(self, message: bytes) -> Reply:
        """The content by BDAT, in one chunk."""
        self.channel.engine.raw(b"BDAT %d LAST\r\n%s" % (len(message), message))
        await self._send_hidden(f"BDAT {len(message)} LAST, and the probe")
        return await self.answer()

    async def say_hidden(self, octets: bytes, replies: int, words: str) -> None:
        """Octets of which the transcript says no more than `words`."""
        self.channel.engine.raw(octets, replies)
        await self._send_hidden(words)

    async def _send_hidden(self, instead: str) -> None:
        """Sends content, of which the transcript says only how much it was."""
        self.transcript.note(instead)
        self.transcript.hides_sent = True
        try:
            await self.channel.flush()
        finally:
            self.transcript.hides_sent = False

    async def data(self) -> Reply:
        """DATA."""
        self.channel.engine.data()
        await self.channel.flush()
        return await self.answer()

    async def quit(self) -> None:
        """Says QUIT if that can be said, and closes."""
        if self.channel.engine.state is ClientState.OPEN:
            await self.channel.quit()
        self.channel.close()

    def abort(self) -> None:
        """Closes at once."""
        self.channel.abort()


def shortened(reply: Reply) -> Reply:
    """The reply with no more text than a report keeps; that to EHLO has many short lines, which stay."""
    if sum(map(len, reply.lines)) <= WORDS:
        return reply
    lines, room = [], 4 * WORDS
    for line in reply.lines:
        lines.append(line[: min(WORDS, room)])
        room -= len(lines[-1])
        if room <= 0:
            break
    return Reply(reply.code, reply.enhanced, tuple(lines))


async def open_dialogue(
    approach: Approach, seconds: float, began: float, hear: Hear, first: bytes = b"", keeps: int = KEPT_OCTETS
) -> Dialogue:
    """Connects; no wait in it will be longer than `seconds`. `first` is said before the greeting (PROXY). PeerLost."""
    transcript = TimedTranscript(began, hear, keeps)
    try:
        channel = await connect(
            approach.endpoint,
            approach.patience.within(seconds),
            source_address=approach.source_address,
            implicit_tls=approach.implicit_tls,
            transcript=transcript,
        )
    except PeerLost as lost:
        transcript.note(lost.words)
        raise
    transcript.on_flood = channel.abort
    dialogue = Dialogue(channel, transcript)
    if first:
        channel.engine.raw(first)  # answered only where it isn't understood
    return dialogue
