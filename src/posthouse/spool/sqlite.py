"""The embedded spool: one SQLite database a shard, group commit, large contents beside it."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from posthouse.mail.envelope import Envelope, QueueIds
from posthouse.mail.message import Message
from posthouse.mail.outcome import Outcome
from posthouse.mail.reason import Slug
from posthouse.spool import reader
from posthouse.spool.act import Act, Verb
from posthouse.spool.api import Clock, ContentSink, Done, Durable, Fate, SpoolBroken, SpoolError, SpoolFull, Waiting
from posthouse.spool.commit import GroupCommit, Phase
from posthouse.spool.content import DIRECTORY_NAME as CONTENT
from posthouse.spool.content import Chunk, OwnFiles, SharedFiles
from posthouse.spool.history import DIRECTORY_NAME as HISTORY
from posthouse.spool.history import History, HistoryLimits
from posthouse.spool.record import Withdrawn, accepted_event, attempted_event, encode_event
from posthouse.spool.schema import DATABASE_NAME, open_reader, open_writer, spool_error
from posthouse.spool.shard import ShardLock
from posthouse.spool.space import Space, SpaceLimits
from posthouse.spool.writer import USED, Prepared, Writer

RECORD_WITHIN = 0.05
"""Seconds that an outcome waits for a batch to ride with; with the commit itself it is on disk within 100 ms."""

CHECKPOINT_PAGES = 4000
"""Pages of log after which a checkpoint is due: 17 MB, some 24 ms. 1,000 stalls less but oftener, 25,000 for 124 ms."""

_TICK = 1.0
_FULL_PAUSE = 1.0


def wall_clock() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


class SpoolSettings(msgspec.Struct, frozen=True):
    """What an operator may set."""

    space: SpaceLimits = SpaceLimits()
    history: HistoryLimits = HistoryLimits()


DEFAULTS = SpoolSettings()


class SpoolState(msgspec.Struct, frozen=True):
    """Figures for metrics."""

    commits: int
    """Since the start."""
    commit_seconds: float
    """Spent in them, syncs included."""
    slowest_commit: float
    log_bytes: int
    """Length of the write-ahead log file: over 256 MB means that some reader holds a snapshot."""
    content_bytes: int
    free_bytes: int
    history_errors: int


class _Accepting:
    __slots__ = ("durable", "envelope", "prepared")

    def __init__(self, envelope: Envelope, prepared: Prepared, durable: Durable) -> None:
        self.envelope = envelope
        self.prepared = prepared
        self.durable = durable


class _Batch:
    __slots__ = ("accepting", "acts", "chunks", "fates", "has_rows", "orphans", "texts")

    def __init__(self, accepting: list[_Accepting], fates: list[Fate], acts: list[Act]) -> None:
        self.accepting = accepting
        self.fates = fates
        self.acts = acts
        self.chunks: list[Chunk] = []
        self.orphans: list[str] = []
        self.texts: list[str] = []
        self.has_rows = bool(accepting or fates or acts)


class SqliteSpool:
    """See `api.Spool`. All methods belong to the loop's thread; those of `_Work` are the commit's."""

    def __init__(
        self,
        directory: Path,
        shard: int,
        *,
        loop: asyncio.AbstractEventLoop | None = None,
        settings: SpoolSettings = DEFAULTS,
        on_broken: Callable[[SpoolError], None] = lambda _: None,
        clock: Clock = wall_clock,
    ) -> None:
        """Opens the shard, made if missing, and clears what a crash left behind.

        Without a loop nothing is committed until `flush`, which calls the waiters back (for commands, while no server
        runs). `on_broken` is called once, in the loop's thread, after every waiter has been told: the server must leave
        without closing the spool (`os._exit`), since a close would sync again. SpoolLocked, SpoolForeign, SpoolBroken.
        """
        self.directory = directory
        self._loop = loop
        self._clock = clock
        self._on_broken = on_broken
        self._broken: SpoolBroken | None = None
        self._lock = ShardLock(directory)
        try:
            self._open(directory, settings)
        except BaseException:
            self._lock.release()
            raise
        self._ids = QueueIds(shard, self._last_queue_id())
        self._accepting: list[_Accepting] = []
        self._accepting_octets = 0
        self._fates: list[Fate] = []
        self._acts: list[Act] = []
        self._running: _Batch | None = None
        self._pages = 0
        self._orphans: list[str] = []
        self._read_space_at = 0.0
        self._commits = 0
        self._commit_seconds = self._slowest_commit = 0.0
        self._read_space()
        self._own = OwnFiles(directory / CONTENT, loop, self._fail) if loop is not None else None
        self._commit = GroupCommit[_Batch](self, loop)
        self._ticker = loop.call_later(_TICK, self._tick) if loop is not None else None

    def _open(self, directory: Path, settings: SpoolSettings) -> None:
        self._connection = open_writer(directory)
        self._reader = open_reader(directory)
        content = directory / CONTENT
        content.mkdir(mode=0o700, exist_ok=True)
        self._files = SharedFiles(content)
        self._writer = Writer(self._connection, self._files)
        self._files.resume(self._connection.execute(USED))
        self._history = History(directory / HISTORY, settings.history, self._clock())
        self._space = Space(directory, settings.space)

    def _last_queue_id(self) -> int:
        last = self._reader.execute("SELECT coalesce(max(id), 0) FROM message").fetchone()[0]
        return max(int(last), self._history.last_queue_id())

    # What the relay calls

    def new_queue_id(self) -> int:
        """See `api.Spool`."""
        return self._ids.next(self._clock())

    def room_for(self, size_bytes: int) -> SpoolError | None:
        """See `api.Spool`."""
        if self._broken is not None:
            return self._broken
        in_flight = self._accepting_octets
        if self._own is not None:
            in_flight += self._own.octets_in_flight
        if self._space.has_room(size_bytes, in_flight):
            return None
        return SpoolFull(f"too little space is free on the disk of {self.directory}")

    def open_sink(self, queue_id: int) -> ContentSink:
        """See `api.Spool`."""
        if self._own is None:
            raise RuntimeError("a content is streamed under an event loop")
        return self._own.open(f"m{queue_id}")

    def accept(self, envelope: Envelope, message: Message, durable: Durable) -> None:
        """See `api.Spool`."""
        prepared = Prepared(envelope, message)
        if message.content.file is not None and not self._is_ours(message):
            raise ValueError("a content in a file must come from open_sink of this spool")
        if self._broken is not None:
            if self._loop is not None:
                self._loop.call_soon(durable, self._broken)
            return
        self._accepting.append(_Accepting(envelope, prepared, durable))
        self._accepting_octets += message.size_bytes
        self._commit.want()

    def _is_ours(self, message: Message) -> bool:
        file = message.content.file
        return self._own is not None and file is not None and file.path.rpartition("/")[2] in self._own.finished

    def record(self, fates: Sequence[Fate]) -> None:
        """See `api.Spool`."""
        self._fates += fates
        self._commit.want_within(RECORD_WITHIN)

    def note_refusal(self, client: str, login: str, slug: Slug) -> None:
        """See `api.Spool`."""
        self._history.note_refusal(self._clock(), client, login, slug.value)

    def destinations(self) -> list[tuple[str, int, int]]:
        """See `api.Spool`."""
        return reader.destinations(self._reader)

    def due(self, destination: str, now: int, limit: int, after: tuple[int, int, int] = (0, 0, 0)) -> list[Waiting]:
        """See `api.Spool`."""
        changed = self._uncommitted()
        found: list[Waiting] = []
        while True:
            wanted = limit - len(found)
            page = reader.due(self._reader, destination, now, wanted, after)
            found += [w for w in page if (w.queue_id, w.index) not in changed] if changed else page
            if len(page) < wanted or len(found) >= limit:
                return found
            after = (page[-1].next_at, page[-1].queue_id, page[-1].index)

    def pending(self, queue_id: int) -> list[Waiting]:
        """See `api.Spool`."""
        changed = self._uncommitted()
        found = []
        for waiting in reader.pending(self._reader, queue_id):
            fate = changed.get((queue_id, waiting.index))
            if fate is None:
                found.append(waiting)
            elif not isinstance(fate.then, Done):
                found.append(
                    msgspec.structs.replace(
                        waiting, attempts=fate.attempts, next_at=fate.then.next_at, notices=fate.then.notices
                    )
                )
        return found

    def _uncommitted(self) -> dict[tuple[int, int], Fate]:
        """What was recorded and is not in the tables yet, the latest of each recipient."""
        running = self._running.fates if self._running is not None else []
        return {(fate.queue_id, fate.index): fate for fates in (running, self._fates) for fate in fates}

    def last_outcomes(self, queue_id: int) -> dict[int, Outcome]:
        """See `api.Spool`."""
        return reader.last_outcomes(self._reader, queue_id)

    def load(self, queue_id: int) -> tuple[Envelope, Message]:
        """See `api.Spool`."""
        return reader.load(self._reader, self._files, queue_id)

    def flush(self) -> None:
        """See `api.Spool`. SpoolBroken or SpoolFull when that cannot be."""
        self._commit.drain()
        if self._broken is not None:
            raise self._broken

    def close(self) -> None:
        """See `api.Spool`. After a failed sync nothing is closed: SQLite would sync again."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._own is not None:
            self._own.close()
        self._commit.close()
        if self._broken is None:
            self._files.remove(self._orphans)
            self._files.close()
            self._reader.close()
            self._connection.close()
            self._history.close()
        self._lock.release()

    @property
    def state(self) -> SpoolState:
        """Figures for metrics; a stat call."""
        log = self.directory / f"{DATABASE_NAME}-wal"
        with contextlib.suppress(FileNotFoundError):
            log_bytes = log.stat().st_size
            return SpoolState(
                self._commits,
                self._commit_seconds,
                self._slowest_commit,
                log_bytes,
                self._files.octets_on_disk,
                self._space.free_bytes,
                self._history.errors,
            )
        return SpoolState(0, 0.0, 0.0, 0, 0, 0, 0)

    # What operators do

    def hold(self, queue_ids: Sequence[int], destination: str | None = None) -> list[int]:
        """See `api.Spool`."""
        return self._act(Verb.HOLD, queue_ids, destination)

    def release(self, queue_ids: Sequence[int], destination: str | None = None) -> list[int]:
        """See `api.Spool`."""
        return self._act(Verb.RELEASE, queue_ids, destination)

    def retry(self, queue_ids: Sequence[int], destination: str | None = None) -> list[int]:
        """See `api.Spool`."""
        return self._act(Verb.RETRY, queue_ids, destination)

    def reroute(self, queue_ids: Sequence[int], next_hop: str, destination: str | None = None) -> list[int]:
        """See `api.Spool`."""
        return self._act(Verb.REROUTE, queue_ids, destination, next_hop)

    def bounce(self, queue_ids: Sequence[int], destination: str | None = None) -> list[int]:
        """See `api.Spool`."""
        return self._act(Verb.BOUNCE, queue_ids, destination)

    def delete(self, queue_ids: Sequence[int], destination: str | None = None) -> list[int]:
        """See `api.Spool`."""
        return self._act(Verb.DELETE, queue_ids, destination)

    def _act(self, verb: Verb, ids: Sequence[int], destination: str | None, argument: str = "") -> list[int]:
        act = Act(verb, tuple(ids), destination, argument, self._clock())
        self._acts.append(act)
        self.flush()
        if act.error is not None:
            raise act.error
        return sorted(act.changed)

    # What the commit calls

    def is_urgent(self) -> bool:
        """See `commit.Work`."""
        return bool(self._accepting)

    def stage(self) -> _Batch | None:
        """See `commit.Work`."""
        batch = _Batch(self._accepting, self._fates, self._acts)
        if not batch.has_rows and not self._history.has_waiting:
            return None
        self._accepting, self._fates, self._acts = [], [], []
        self._accepting_octets = 0
        if batch.has_rows:
            try:
                self._write_rows(batch)
            except sqlite3.Error as error:
                self._writer.rollback()
                fault = spool_error(error, f"writing {self.directory / DATABASE_NAME}")
                self.settle(batch, fault)
                if isinstance(fault, SpoolBroken):
                    raise fault from error
                return None
        self._note(batch)
        self._history.stage()
        self._running = batch
        return batch

    def _write_rows(self, batch: _Batch) -> None:
        writer = self._writer
        writer.begin()
        if batch.accepting:
            writer.insert([one.prepared for one in batch.accepting], self._own.finished if self._own else {})
        if batch.fates:
            batch.texts = [encode_event(attempted_event(fate)) for fate in batch.fates]
            writer.apply(batch.fates, batch.texts)
        for act in batch.acts:
            writer.act(act)
        batch.chunks, batch.orphans = writer.chunks, writer.orphans

    def _note(self, batch: _Batch) -> None:
        history = self._history
        for one in batch.accepting:
            envelope = one.envelope
            size = one.prepared.message.size_bytes
            history.note(envelope.queue_id, encode_event(accepted_event(envelope, size)))
            recipients = envelope.recipients
            history.note_usage(
                envelope.arrived_at,
                envelope.origin,
                recipients[0].grant.kind.value,
                recipients=len(recipients),
                octets=size,
            )
            self._space.take(size)
        for fate, text in zip(batch.fates, batch.texts, strict=True):
            history.note(fate.queue_id, text)
        for act in batch.acts:
            for queue_id, event in act.events():
                history.note(queue_id, encode_event(event))

    def commit(self, batch: _Batch) -> None:
        """See `commit.Work`."""
        started = time.perf_counter()
        self._history.commit()
        if not batch.has_rows:
            return
        try:
            if batch.chunks:
                self._files.write(batch.chunks)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            fault = spool_error(error, f"committing to {self.directory / DATABASE_NAME}")
            self._undo(fault)
            raise fault from error
        except SpoolError as fault:
            self._undo(fault)
            raise
        self._orphans += batch.orphans
        self._pages += self._writer.take_pages()
        elapsed = time.perf_counter() - started
        self._commits += 1
        self._commit_seconds += elapsed
        self._slowest_commit = max(elapsed, self._slowest_commit)

    def _undo(self, fault: SpoolError) -> None:
        if isinstance(fault, SpoolFull) and self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise spool_error(error, "undoing a transaction", is_sync=True) from error

    def settle(self, batch: _Batch, error: SpoolError | None) -> None:
        """See `commit.Work`."""
        self._running = None
        if error is not None:
            self._settle_failed(batch, error)
        for one in batch.accepting:
            try:
                one.durable(error)
            except Exception as fault:
                self._report(fault)
        if batch.accepting and self._own is not None:
            for one in batch.accepting:
                if one.prepared.message.content.file is not None:
                    self._own.octets_in_flight -= one.prepared.message.content.size_bytes

    def _settle_failed(self, batch: _Batch, error: SpoolError) -> None:
        for act in batch.acts:
            act.error = error
        if isinstance(error, SpoolBroken):
            return
        if not self._connection.in_transaction:  # the commit thread has rolled back
            self._writer.rollback()
        self._fates[:0] = batch.fates
        self._commit.want_within(_FULL_PAUSE)
        withdrawn = encode_event(Withdrawn(self._clock(), str(error)))
        for one in batch.accepting:
            self._history.note(one.envelope.queue_id, withdrawn)

    def _report(self, fault: Exception) -> None:
        if self._loop is None:
            raise fault
        self._loop.call_exception_handler({"message": "a waiter for the spool failed", "exception": fault})

    def wants_upkeep(self) -> bool:
        """See `commit.Work`."""
        return (
            self._pages >= CHECKPOINT_PAGES
            or bool(self._orphans)
            or time.monotonic() - self._read_space_at >= _TICK
            or self._history.wants_upkeep(self._clock())
        )

    def upkeep(self, is_idle: bool) -> None:
        """See `commit.Work`."""
        if self._orphans:
            orphans, self._orphans = self._orphans, []
            self._files.remove(orphans)
        if self._pages >= CHECKPOINT_PAGES:
            self._checkpoint()
        now = self._clock()
        if self._history.wants_upkeep(now):
            self._history.upkeep(now)
        if time.monotonic() - self._read_space_at >= _TICK:
            self._read_space()

    def _checkpoint(self) -> None:
        try:
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            raise spool_error(error, f"checkpointing {self.directory / DATABASE_NAME}", is_sync=True) from error
        # What a reader's snapshot keeps in the log is tried again after as many pages, not after each commit.
        self._pages = 0

    def _read_space(self) -> None:
        self._read_space_at = time.monotonic()
        free_pages = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
        try:
            self._space.read(free_pages * 4096)
        except OSError as error:
            raise spool_error(error, f"reading the free space of {self.directory}") from error

    def broken(self, error: SpoolBroken) -> None:
        """See `commit.Work`."""
        self._broken = error
        batch = _Batch(self._accepting, [], self._acts)
        self._accepting, self._acts = [], []
        self.settle(batch, error)
        self._on_broken(error)

    def _fail(self, error: SpoolBroken) -> None:
        self._commit.fail(error)

    def _tick(self) -> None:
        if self._loop is None or self._commit.phase in {Phase.BROKEN, Phase.CLOSED}:
            return
        self._ticker = self._loop.call_later(_TICK, self._tick)
        if self._history.has_waiting:
            self._commit.want()
        else:
            self._commit.tend()
