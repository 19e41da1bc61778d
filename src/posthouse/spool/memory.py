"""A spool that forgets everything with its process: for tests. Same contract, no disk."""

import asyncio
from collections.abc import Sequence

import msgspec

from posthouse.mail.envelope import Envelope, QueueIds
from posthouse.mail.grant import Grant
from posthouse.mail.message import Content, Message
from posthouse.mail.outcome import Outcome
from posthouse.mail.reason import Slug
from posthouse.smtp.event import DotForm
from posthouse.spool.act import DELETED
from posthouse.spool.api import (
    Clock,
    ContentSink,
    Done,
    Durable,
    Fate,
    SpoolError,
    SpoolFull,
    Verb,
    Waiting,
    destination_of,
)
from posthouse.spool.record import (
    Acted,
    HistoryEvent,
    accepted_event,
    attempted_event,
)


class _Row:
    """One unsettled recipient."""

    __slots__ = ("is_held", "last", "waiting")

    def __init__(self, waiting: Waiting) -> None:
        self.waiting = waiting
        self.is_held = False
        self.last: Outcome | None = None


class _Stored:
    __slots__ = ("envelope", "message", "rows")

    def __init__(self, envelope: Envelope, message: Message) -> None:
        self.envelope = envelope
        self.message = message
        at = envelope.arrived_at
        self.rows = {
            n: _Row(Waiting(envelope.queue_id, n, destination_of(recipient), 0, at, at))
            for n, recipient in enumerate(envelope.recipients)
        }


class MemorySpool:
    """See `api.Spool`. `room_bytes` bounds what it holds; `history` keeps every event by message."""

    def __init__(
        self,
        shard: int,
        *,
        loop: asyncio.AbstractEventLoop | None,
        clock: Clock,
        room_bytes: int = 1 << 40,
    ) -> None:
        self._ids = QueueIds(shard)
        self._loop = loop
        self._clock = clock
        self._room_bytes = room_bytes
        self._octets = 0
        self._stored: dict[int, _Stored] = {}
        self._last: dict[tuple[int, int], Outcome] = {}
        self._gathered: list[tuple[Envelope, Message, Durable]] = []
        self.history: dict[int, list[HistoryEvent]] = {}
        self.refusals: dict[tuple[str, str, Slug], int] = {}

    def new_queue_id(self) -> int:
        """See `api.Spool`."""
        return self._ids.next(self._clock())

    def room_for(self, size_bytes: int) -> SpoolError | None:
        """See `api.Spool`."""
        if self._octets + size_bytes <= self._room_bytes:
            return None
        return SpoolFull("the spool in memory is full")

    def open_sink(self, queue_id: int) -> ContentSink:
        """See `api.Spool`."""
        return _MemorySink()

    def accept(self, envelope: Envelope, message: Message, durable: Durable) -> None:
        """See `api.Spool`."""
        for recipient in envelope.recipients:
            if type(recipient.grant) is not Grant:
                raise TypeError("a recipient has no grant: nothing enters the queue without one")
        if not envelope.recipients:
            raise ValueError("a message needs a recipient")
        if not self._gathered and self._loop is not None:
            self._loop.call_soon(self._store)
        self._gathered.append((envelope, message, durable))

    def _store(self) -> None:
        gathered, self._gathered = self._gathered, []
        for envelope, message, durable in gathered:
            self._stored[envelope.queue_id] = _Stored(envelope, message)
            self._octets += message.size_bytes
            self._note(envelope.queue_id, accepted_event(envelope, message.size_bytes))
            durable(None)

    def _note(self, queue_id: int, event: HistoryEvent) -> None:
        self.history.setdefault(queue_id, []).append(event)

    def record(self, fates: Sequence[Fate], *, at_once: bool = False) -> None:
        """See `api.Spool`."""
        for fate in fates:
            self._note(fate.queue_id, attempted_event(fate))
            self._apply(fate)

    def _apply(self, fate: Fate) -> None:
        stored = self._stored.get(fate.queue_id)
        row = stored.rows.get(fate.index) if stored is not None else None
        if stored is None or row is None:
            return
        self._last[fate.queue_id, fate.index] = fate.outcome
        if isinstance(fate.then, Done):
            del stored.rows[fate.index]
            if not stored.rows:
                self._forget(stored)
            return
        waiting = row.waiting
        row.waiting = msgspec.structs.replace(
            waiting,
            attempts=fate.attempts,
            next_at=waiting.next_at if waiting.bounce else fate.then.next_at,
            notices=fate.then.notices,
        )

    def _forget(self, stored: _Stored) -> None:
        queue_id = stored.envelope.queue_id
        del self._stored[queue_id]
        self._octets -= stored.message.size_bytes
        for n in range(len(stored.envelope.recipients)):
            self._last.pop((queue_id, n), None)

    def _queued(self) -> list[Waiting]:
        return [row.waiting for stored in self._stored.values() for row in stored.rows.values() if not row.is_held]

    def destinations(self) -> list[tuple[str, int, int]]:
        """See `api.Spool`."""
        found: dict[str, tuple[int, int]] = {}
        for waiting in self._queued():
            earliest, count = found.get(waiting.destination, (waiting.next_at, 0))
            found[waiting.destination] = (min(earliest, waiting.next_at), count + 1)
        return [(name, *figures) for name, figures in sorted(found.items())]

    def due(self, destination: str, now: int, limit: int, after: tuple[int, int, int] = (0, 0, 0)) -> list[Waiting]:
        """See `api.Spool`."""
        found = [w for w in self._queued() if w.destination == destination and w.next_at <= now and w.position > after]
        return sorted(found, key=lambda w: w.position)[:limit]

    def pending(self, queue_id: int) -> list[Waiting]:
        """See `api.Spool`."""
        stored = self._stored.get(queue_id)
        return [row.waiting for row in stored.rows.values()] if stored is not None else []

    def last_outcomes(self, queue_id: int) -> dict[int, Outcome]:
        """See `api.Spool`."""
        return {n: outcome for (message, n), outcome in self._last.items() if message == queue_id}

    def load(self, queue_id: int) -> tuple[Envelope, Message]:
        """See `api.Spool`."""
        stored = self._stored[queue_id]
        return stored.envelope, stored.message

    def act(
        self, verb: Verb, queue_ids: Sequence[int], destination: str | None = None, next_hop: str = ""
    ) -> list[int]:
        """See `api.Spool`."""
        self.flush()
        now = self._clock()
        changed = []
        for queue_id in sorted(set(queue_ids) & self._stored.keys()):
            rows = [
                row
                for row in list(self._stored[queue_id].rows.values())
                if destination in {None, row.waiting.destination} and _concerns(verb, row)
            ]
            for row in rows:
                if verb is Verb.DELETE:
                    self._apply(Fate(queue_id, row.waiting.index, DELETED, Done(), row.waiting.attempts, now))
                else:
                    _change(verb, row, now, next_hop)
            if rows:
                changed.append(queue_id)
                self._note(queue_id, Acted(now, verb.value, tuple(row.waiting.index for row in rows), next_hop))
        return changed

    def correct_times(self, by: int, longest_wait: int) -> None:
        """See `api.Spool`."""
        self.flush()
        now = self._clock()
        for stored in self._stored.values():
            arrived = max(0, min(stored.envelope.arrived_at + by, now))
            stored.envelope = msgspec.structs.replace(stored.envelope, arrived_at=arrived)
            for row in stored.rows.values():
                at = row.waiting.next_at + by
                if by or (at > now + longest_wait and not row.is_held):
                    at = max(0, min(at, now + longest_wait if by else now))
                row.waiting = msgspec.structs.replace(row.waiting, arrived_at=arrived, next_at=at)

    def note_refusal(self, client: str, login: str, slug: Slug) -> None:
        """See `api.Spool`."""
        key = (client, login, slug)
        self.refusals[key] = self.refusals.get(key, 0) + 1

    def flush(self) -> None:
        """See `api.Spool`."""
        self._store()

    def close(self) -> None:
        """See `api.Spool`."""
        self._store()


def _concerns(verb: Verb, row: _Row) -> bool:
    """The same rule as `act._WHERE`."""
    if verb is Verb.HOLD:
        return not row.is_held and not row.waiting.bounce
    if verb is Verb.RELEASE:
        return row.is_held
    if verb is Verb.RETRY:
        return not row.is_held
    return verb is not Verb.BOUNCE or not row.waiting.bounce


def _change(verb: Verb, row: _Row, now: int, argument: str) -> None:
    """The same rule as `act._SET`."""
    if verb is Verb.HOLD:
        row.is_held = True
        return
    row.waiting = msgspec.structs.replace(row.waiting, next_at=now)
    if verb is Verb.REROUTE:
        row.waiting = msgspec.structs.replace(row.waiting, destination=argument, bounce=False)
    elif verb is Verb.BOUNCE:
        row.is_held = False
        row.waiting = msgspec.structs.replace(row.waiting, bounce=True)
    elif verb is Verb.RELEASE:
        row.is_held = False


class _MemorySink:
    """See `api.ContentSink`."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._pieces.append(data)

    @property
    def is_congested(self) -> bool:
        return False

    async def drained(self) -> None:
        return

    async def finish(self, dots: DotForm, is_8bit: bool) -> Content:
        return Content(sum(map(len, self._pieces)), dots, is_8bit, tuple(self._pieces))

    def abandon(self) -> None:
        self._pieces.clear()
