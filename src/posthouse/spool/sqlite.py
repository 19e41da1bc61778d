"""The embedded spool: one SQLite database a shard, group commit, large contents beside it."""

import asyncio
import heapq
import operator
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from posthouse.mail.envelope import Envelope, QueueIds
from posthouse.mail.message import Message
from posthouse.mail.outcome import Outcome
from posthouse.mail.reason import Slug
from posthouse.spool import reader, salvage
from posthouse.spool.act import Act, Correction
from posthouse.spool.api import (
    Clock,
    ContentSink,
    Durable,
    Fate,
    SpoolBroken,
    SpoolDamaged,
    SpoolError,
    SpoolFull,
    Verb,
    Waiting,
)
from posthouse.spool.batch import Batch, Batches, Incoming, SpoolSettings
from posthouse.spool.clock import wall_clock
from posthouse.spool.commit import GroupCommit, Phase
from posthouse.spool.content import DIRECTORY_NAME as CONTENT
from posthouse.spool.content import OwnFiles
from posthouse.spool.schema import open_reader, spool_error
from posthouse.spool.shard import ShardLock
from posthouse.spool.uncommitted import Key

__all__ = ["SpoolSettings", "SpoolState", "SqliteSpool", "wall_clock"]

RECORD_WITHIN = 0.05
"""Seconds that an outcome waits for a batch to ride with; with the commit itself it is on disk within 100 ms."""

_TICK = 1.0
_IDLE_WORK_TICK = 0.05
_DEFAULTS = SpoolSettings()
R = TypeVar("R")
_position = operator.attrgetter("position")


class SpoolState(msgspec.Struct, frozen=True):
    """Figures for metrics. Sizes are octets, times milliseconds since 1970."""

    messages: int
    queued: int
    """Recipients that wait."""
    held: int
    """Recipients."""
    oldest_at: int
    """Arrival of the oldest message, 0 when there is none."""
    log_bytes: int
    """Length of the write-ahead log file: over 256 MB means that some reader holds a snapshot."""
    content_bytes: int
    """Of the shared content files."""
    free_bytes: int
    history_errors: int


class SqliteSpool:
    """See `api.Spool`. All methods belong to the loop's thread."""

    def __init__(
        self,
        directory: Path,
        shard: int,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        settings: SpoolSettings = _DEFAULTS,
        on_broken: Callable[[SpoolError], None] = lambda _: None,
        clock: Clock = wall_clock,
        heard: Callable[[], int] = lambda: 0,
    ) -> None:
        """Opens the shard, made if missing, and clears what a crash left behind.

        Without a loop nothing is committed until `flush`, which calls the waiters back (for commands, while no server
        runs). `on_broken` is called once, in the loop's thread, after every waiter has been told: the server must leave
        without closing the spool (`os._exit`), since a close would sync again. `heard` is a number that grows whenever a
        client is heard from: while it does, messages gather (see `commit`). SpoolLocked, SpoolForeign, SpoolBroken.
        """
        self.directory = directory
        self._loop = loop
        self._clock = clock
        self._lock = ShardLock(directory)
        try:
            self._open(shard, settings, on_broken)
        except BaseException:
            self._lock.release()
            raise
        if loop is not None:
            self._batches.own = OwnFiles(directory / CONTENT, loop, self._fail)
        self._commit = GroupCommit[Batch](self._batches, loop, heard)
        self._ticker = loop.call_later(_TICK, self._tick) if loop is not None else None

    def _open(self, shard: int, settings: SpoolSettings, on_broken: Callable[[SpoolError], None]) -> None:
        """Opens the database; a damaged one is salvaged first, if a server asks (it has the time, and somewhere to say so)."""
        if salvage.finish(self.directory) and self._loop is not None:
            salvage.salvage(self.directory, self._clock())
        try:
            self._try_open(shard, settings, on_broken)
        except SpoolDamaged:
            if self._loop is None:
                raise
            salvage.salvage(self.directory, self._clock())
            self._try_open(shard, settings, on_broken)

    def _try_open(self, shard: int, settings: SpoolSettings, on_broken: Callable[[SpoolError], None]) -> None:
        try:
            self._batches = Batches(
                self.directory, settings, self._clock, on_broken=on_broken, later=self._within, report=self._report
            )
            self._reader = open_reader(self.directory)
            self._ids = QueueIds(shard, max(reader.last_id(self._reader), self._batches.history.last_queue_id()))
            self._messages_at_start = reader.count_messages(self._reader)
            self._unsettled_at_start = reader.count_unsettled(self._reader)
        except sqlite3.Error as error:
            raise spool_error(error, f"opening {self.directory}") from error

    def _read(self, look: Callable[..., R], *arguments: object) -> R:
        """A look by the reading connection. What shows that the database is damaged, or the disk, is the end of everything."""
        try:
            return look(self._reader, *arguments)
        except sqlite3.Error as error:
            fault = spool_error(error, f"reading the database in {self.directory}")
            if isinstance(fault, SpoolBroken) and getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                self._fail(fault)
            raise fault from error

    def lay_out_log(self) -> None:
        """Before the first message, for a server that is to be fast: see `Batches.lay_out_log`. Takes some 50 ms. SpoolError."""
        self._batches.lay_out_log()

    # Taking mail in

    def new_queue_id(self) -> int:
        """See `api.Spool`."""
        return self._ids.next(self._clock())

    def room_for(self, size_bytes: int) -> SpoolError | None:
        """See `api.Spool`."""
        batches = self._batches
        if batches.broken_by is not None:
            return batches.broken_by
        in_flight = batches.incoming_octets
        if batches.own is not None:
            in_flight += batches.own.octets_in_flight
        if batches.space.has_room(size_bytes, in_flight) and not batches.reserve.is_spent:
            return None
        return SpoolFull(f"too little space is free on the disk of {self.directory}")

    def open_sink(self, queue_id: int) -> ContentSink:
        """See `api.Spool`."""
        if self._batches.own is None:
            raise RuntimeError("a content is streamed under an event loop")
        return self._batches.own.open(f"m{queue_id}")

    def accept(self, envelope: Envelope, message: Message, durable: Durable) -> None:
        """See `api.Spool`. ValueError for a content in a file that is not from this spool's `open_sink`."""
        batches = self._batches
        incoming = Incoming(envelope, message, durable)
        file = message.content.file
        if file is not None and (batches.own is None or not batches.own.take(file)):
            raise ValueError("a content in a file must come from open_sink of this spool, and be finished")
        if batches.broken_by is not None:
            if self._loop is None:
                durable(batches.broken_by)
            else:
                self._loop.call_soon(durable, batches.broken_by)
            return
        batches.add(incoming)
        self._commit.want()

    def record(self, fates: Sequence[Fate], *, at_once: bool = False) -> None:
        """See `api.Spool`."""
        self._batches.add_fates(fates, at_once=at_once)
        if at_once:
            self._commit.want()
        else:
            self._commit.want_within(RECORD_WITHIN)

    def note_refusal(self, client: str, login: str, slug: Slug) -> None:
        """See `api.Spool`."""
        self._batches.history.note_refusal(self._clock(), client, login, slug.value)

    # Looking into the queue

    def destinations(self) -> list[tuple[str, int, int]]:
        """See `api.Spool`."""
        figures: dict[str, tuple[int, int]] = {}
        known = self._read(reader.destinations, self._batches.uncommitted.fates)
        put_off = [
            (waiting.destination, waiting.next_at, 1)
            for there in self._put_off().values()
            for waiting in there.values()
        ]
        for destination, at, count in known + put_off:
            earliest, before = figures.get(destination, (at, 0))
            figures[destination] = (min(earliest, at), before + count)
        return [(destination, *figures[destination]) for destination in sorted(figures)]

    def due(self, destination: str, now: int, limit: int, after: tuple[int, int, int] = (0, 0, 0)) -> list[Waiting]:
        """See `api.Spool`."""
        fates, untold = self._batches.uncommitted.fates, self._untold()
        if not fates and not untold:
            return self._read(reader.due, destination, now, limit, after)
        put_off = self._put_off().get(destination, {}).values()
        found = [w for w in put_off if w.next_at <= now and w.position > after]
        found = heapq.nsmallest(limit, found, key=_position)
        while True:
            page = self._read(reader.due, destination, now, limit, after)
            found += [w for w in page if (w.queue_id, w.index) not in fates and w.queue_id not in untold]
            found.sort(key=_position)
            del found[limit:]
            if len(page) < limit or not page:
                return found
            after = page[-1].position
            if len(found) == limit and found[-1].position <= after:
                return found

    def pending(self, queue_id: int) -> list[Waiting]:
        """See `api.Spool`."""
        seen = map(self._batches.uncommitted.seen, self._read(reader.pending, queue_id))
        return [waiting for waiting in seen if waiting is not None]

    def _put_off(self) -> dict[str, dict[Key, Waiting]]:
        """Who was put off by what is not committed yet, by destination."""
        return self._batches.uncommitted.put_off(lambda keys: self._read(reader.queued, keys))

    def _untold(self) -> set[int]:
        """Messages that the thread may have committed already, but whose `durable` is still to be called.

        Whoever accepted them delivers them from then on; were they due as well, they would be delivered twice.
        """
        running = self._batches.running
        return {one.envelope.queue_id for one in running.incoming} if running is not None else set()

    def last_outcomes(self, queue_id: int) -> dict[int, Outcome]:
        """See `api.Spool`."""
        return self._read(reader.last_outcomes, queue_id)

    def load(self, queue_id: int) -> tuple[Envelope, Message]:
        """See `api.Spool`."""
        return reader.load(self._reader, self._batches.files, queue_id)

    @property
    def state(self) -> SpoolState:
        """Figures for metrics: a stat call and two look-ups."""
        batches = self._batches
        held, oldest = self._read(reader.held_and_oldest)
        return SpoolState(
            self._messages_at_start + batches.writer.messages_added,
            self._unsettled_at_start + batches.writer.unsettled_added - held,
            held,
            oldest,
            batches.log_bytes,
            batches.files.octets_on_disk,
            batches.space.free_bytes,
            batches.history.errors,
        )

    # What operators do

    def act(
        self, verb: Verb, queue_ids: Sequence[int], destination: str | None = None, next_hop: str = ""
    ) -> list[int]:
        """See `api.Spool`."""
        done = Act(verb, tuple(queue_ids), destination, next_hop, self._clock())
        self._batches.add_act(done)
        self.flush()
        if done.error is not None:
            raise done.error
        return sorted(done.changed)

    def correct_times(self, by: int, longest_wait: int) -> None:
        """See `api.Spool`."""
        now = self._clock()
        correction = Correction(by, now, now + longest_wait)
        self._batches.add_act(correction)
        self.flush()
        if correction.error is not None:
            raise correction.error

    # Beginning and end

    def flush(self) -> None:
        """See `api.Spool`. SpoolBroken when that cannot be; after a full disk what could not be written is kept."""
        self._commit.drain()
        if self._batches.broken_by is not None:
            raise self._batches.broken_by

    def close(self) -> None:
        """See `api.Spool`. After a failed sync nothing is closed: SQLite would sync again."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._batches.own is not None:
            self._batches.own.close()
        self._commit.close()
        if self._batches.broken_by is None:
            self._reader.close()
        self._batches.close()
        self._lock.release()

    def _fail(self, error: SpoolBroken) -> None:
        self._commit.fail(error)

    def _within(self, seconds: float) -> None:
        self._commit.want_within(seconds)

    def _report(self, fault: Exception) -> None:
        if self._loop is None:
            raise fault
        self._loop.call_exception_handler({"message": "a waiter for the spool failed", "exception": fault})

    def _tick(self) -> None:
        """Once a second: writes counted refusals, empties sparse content files, else upkeep."""
        if self._loop is None or self._commit.phase in {Phase.BROKEN, Phase.CLOSED}:
            return
        batches = self._batches
        if self._commit.phase is Phase.IDLE and (batches.has_history or batches.compact()):
            self._commit.want()
        else:
            self._commit.tend()
        self._ticker = self._loop.call_later(_IDLE_WORK_TICK if batches.has_idle_work else _TICK, self._tick)
