"""One test and those who watch it. Events are kept in their order; a watcher reads them at his own pace, from any of them on."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from posthouse.tester.report import Report
from posthouse.tester.verdict import HostVerdict
from posthouse.web.document import Place, PortState, Proof, RelayTest, State, judge, links_of
from posthouse.web.event import Event, EventKind, Who

MOST_EVENTS = 5_000
LONGEST_TEXT = 1_000
SILENCE_SECONDS = 10.0
"""After so long without an event a watcher is told that there is none: proxies cut silent streams."""

_ID_OCTETS = 15


class Subject(msgspec.Struct, frozen=True):
    """Whom a test is about: `host` as the user calls it, the `address` that is tested, its `ports`, the echo's `nonce`.
    `asker` is what a visitor's own tokens are bound to."""

    host: str
    address: str
    ports: tuple[int, ...]
    nonce: str = ""
    by_calling: bool = False
    doubts: tuple[str, ...] = ()
    asker: str = ""


class Job:
    """A test through all its states."""

    def __init__(self, subject: Subject, now: float, state: State = State.QUEUED) -> None:
        self.id = secrets.token_hex(_ID_OCTETS)  # whoever has the link may read the result, so it can't be guessed
        self.subject = subject
        self.state = state
        self.created_at = now
        self.started_at = 0.0
        self.ended_at = 0.0
        self.expires_at = 0.0
        self.events: list[Event] = []
        self.place: Place | None = None
        self.proof: Proof | None = None
        self.ports: list[PortState] = []
        self.reports: list[Report] = []
        self.words = ""
        self._changed = asyncio.Event()

    @property
    def document(self) -> RelayTest:
        """What can be said now."""
        verdict: HostVerdict | None = None
        remedy, words = None, self.words
        if self.state is State.DONE:
            verdict, words, remedy = judge(self.reports, self.ports)
        return RelayTest(
            id=self.id,
            state=self.state,
            host=self.subject.host,
            address=self.subject.address,
            ports=tuple(self.ports),
            verdict=verdict,
            words=words,
            by_calling=self.subject.by_calling,
            created_at=self.created_at,
            links=links_of(self.id),
            started_at=self.started_at,
            ended_at=self.ended_at,
            expires_at=self.expires_at,
            queue=self.place if self.state is State.QUEUED else None,
            proof=self.proof if self.state is State.UNPROVED else None,
            remedy=remedy,
            doubts=self.subject.doubts,
            reports=tuple(self.reports),
        )

    def tell(self, kind: EventKind, **fields: Any) -> None:
        """Adds an event. Lines are cut, and beyond MOST_EVENTS left out: a host may talk without end."""
        if kind is EventKind.LINE and len(self.events) >= MOST_EVENTS:
            return
        if len(fields.get("text", "")) > LONGEST_TEXT:
            fields["text"] = fields["text"][:LONGEST_TEXT] + "…"
        self.events.append(Event(len(self.events) + 1, kind, **fields))
        self.wake()

    def tell_line(self, port: int, session: int, seconds: float, who: Who, text: str) -> None:
        """Adds a line of a dialogue."""
        self.tell(EventKind.LINE, port=port, session=session, seconds=round(seconds, 3), who=who, text=text)

    def leave_out(self, port: int, words: str) -> None:
        """A port that answers will not be tested; the words say why."""
        self.ports = [PortState(one.port, True, words) if one.port == port else one for one in self.ports]
        self.tell(EventKind.PORT, port=port, words=words)

    def wake(self) -> None:
        """Those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def watch(self, after: int = 0) -> AsyncIterator[Event | None]:
        """The events behind number `after`, as they come, to the last; None when there was nothing for a while."""
        number = after
        while True:
            while number < len(self.events):
                event = self.events[number]
                number += 1
                yield event
                if event.is_last:
                    return
            changed = self._changed
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await changed.wait()
            except TimeoutError:
                yield None

    async def over(self, seconds: float) -> bool:
        """Waits at most `seconds` until the test is over; whether it is."""
        try:
            async with asyncio.timeout(seconds):
                while not self.state.is_over:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True
