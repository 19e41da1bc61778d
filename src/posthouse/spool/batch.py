"""What one commit of a shard holds: messages coming in, outcomes, operators' acts; and all that happens around it.

This is the work that `commit.GroupCommit` drives. In the loop: gather, stage (run the statements and, where no content file
goes first, the transaction's end), settle (tell the waiters). On the thread: the sync, then upkeep. See `commit` for who owns
the connection when.

SQLite runs with synchronous=NORMAL: it writes its log at each transaction's end and syncs it only before a checkpoint. The sync
that a 250 waits for is our own fdatasync of the log. It is the same promise as synchronous=FULL, and the thread needs the
interpreter's lock twice a batch instead of some fifteen times: each time it may wait half a millisecond for a busy loop, and that,
not the disk, was what a commit took (5 ms against 1).
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from posthouse.mail.envelope import Envelope
from posthouse.mail.message import Message
from posthouse.observe import metrics
from posthouse.spool.act import Act, Correction
from posthouse.spool.api import Clock, ContentMissing, Durable, Fate, SpoolBroken, SpoolDamaged, SpoolError, SpoolFull
from posthouse.spool.content import DIRECTORY_NAME as CONTENT
from posthouse.spool.content import Chunk, OwnFiles, SharedFiles
from posthouse.spool.history import DIRECTORY_NAME as HISTORY
from posthouse.spool.history import History, HistoryLimits
from posthouse.spool.record import Withdrawn, accepted_event, attempted_event, encode_event
from posthouse.spool.salvage import mark
from posthouse.spool.schema import DATABASE_NAME, PAGE_SIZE, open_log, open_writer, spool_error
from posthouse.spool.space import Reserve, Space, SpaceLimits
from posthouse.spool.uncommitted import Uncommitted
from posthouse.spool.writer import USED, Prepared, Writer

CHECKPOINT_PAGES = 4000
"""Pages of log after which a checkpoint is due: 17 MB, some 24 ms. 1,000 stalls less but oftener, 25,000 for 124 ms."""

_LOG_OCTETS = 17 * 1024 * 1024  # what the log comes to before a checkpoint lets it begin anew
_LOG_PIECE = 1024 * 1024
_LOG_ROOM = 1024 * 1024 * 1024

SPACE_SECONDS = 1.0
"""Between two readings of the free space."""

SPACE_OCTETS = 64 * 1024 * 1024
"""Octets taken in after which it is read sooner."""

_VACUUM_PAGES = 64  # of one step: some 20 ms
_VACUUM_PAGES_WHEN_FULL = 1024
_VACUUM_ABOVE = 4096  # free pages (16 MB) that are left for the next burst

FATES_AFTER = 0.03
FATES_TOGETHER = 512
"""Outcomes need no sync of their own, and cost half when many of one stretch of the tables go at once: a batch with mail coming in
takes them along only when the oldest is so many seconds old, or there are so many. With the timer they are on record in time."""

_MOVES = 32
_ALL = 1 << 30
_SOME_OF_FILE = "SELECT id, content_offset, content_length FROM message WHERE content_file=? LIMIT ?"

_UNSTORABLE = (
    sqlite3.IntegrityError,
    sqlite3.ProgrammingError,
    sqlite3.InterfaceError,
    UnicodeError,
    OverflowError,
    KeyError,
)
"""Faults of one message's values, not of the disk: an id that is taken, a text that is no UTF-8."""


class SpoolSettings(msgspec.Struct, frozen=True):
    """What an operator may set."""

    space: SpaceLimits = SpaceLimits()
    history: HistoryLimits = HistoryLimits()


class Incoming:
    """A message on its way in. Made when it is handed in, so that a fault in it falls on who did that."""

    __slots__ = ("durable", "envelope", "error", "prepared", "text")  # fmt: skip

    def __init__(self, envelope: Envelope, message: Message, durable: Durable) -> None:
        self.envelope = envelope
        self.prepared = Prepared(envelope, message)
        self.text = encode_event(accepted_event(envelope, message.size_bytes))
        self.durable = durable
        self.error: SpoolError | None = None
        """Why this one alone could not be stored."""


class Batch:
    """What shares one commit."""

    __slots__ = (
        "acts",
        "chunks",
        "fates",
        "has_rows",
        "incoming",
        "is_database_full",
        "moves",
        "orphans",
        "seconds",
        "texts",
    )

    def __init__(
        self, incoming: list[Incoming], fates: list[Fate], texts: list[str], acts: list[Act | Correction]
    ) -> None:
        self.incoming = incoming
        self.fates = fates
        self.texts = texts
        self.acts = acts
        self.moves: list[tuple[int, str, bytes]] = []
        self.chunks: list[Chunk] = []
        self.orphans: list[str] = []
        self.has_rows = bool(incoming or fates or acts)
        self.is_database_full = False
        self.seconds = 0.0


class Batches:
    """Implements `commit.Work` on one shard's directory, whose lock its owner holds.

    `later(seconds)` asks for a batch within that time; `report` takes what a waiter's callback raised.
    """

    def __init__(
        self,
        directory: Path,
        settings: SpoolSettings,
        clock: Clock,
        *,
        on_broken: Callable[[SpoolError], None],
        later: Callable[[float], None],
        report: Callable[[Exception], None],
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._on_broken = on_broken
        self._later = later
        self._report = report
        self.connection = open_writer(directory)
        content = directory / CONTENT
        content.mkdir(mode=0o700, exist_ok=True)
        self.log_fd = open_log(
            directory
        )  # syncs the directory: not before all names in it that mail depends on are there
        self.files = SharedFiles(content)
        self.writer = Writer(self.connection, self.files)
        self.files.resume(self.connection.execute(USED))
        self.history = History(directory / HISTORY, settings.history, clock())
        self.reserve = Reserve(directory, settings.space.reserve_bytes)
        self.space = Space(directory, settings.space)
        self.own: OwnFiles | None = None
        self.broken_by: SpoolBroken | None = None
        self.running: Batch | None = None
        self._incoming: list[Incoming] = []
        self.incoming_octets = 0
        self.fates: list[Fate] = []
        self.uncommitted = Uncommitted()
        self._texts: list[str] = []
        self._acts: list[Act | Correction] = []
        self._most_fates = _ALL
        self._fates_since = 0.0
        self._are_fates_urgent = False
        self._moves: list[tuple[int, str, bytes]] = []
        self._pages = 0
        self._orphans: list[str] = []
        self._space_read_at = 0.0
        self._read_space()

    def lay_out_log(self) -> None:
        """Writes zeros where the log will be, so that a sync need not record that the file has grown: 130 µs in place of 220.

        SQLite ends at the first frame whose checksum is wrong, and zeros are such a frame. Without much room nothing is laid out.
        """
        size = os.fstat(self.log_fd).st_size
        if size >= _LOG_OCTETS or self.space.free_bytes < _LOG_ROOM or self.reserve.is_spent:
            return
        try:
            for offset in range(size, _LOG_OCTETS, _LOG_PIECE):
                os.pwrite(self.log_fd, bytes(min(_LOG_PIECE, _LOG_OCTETS - offset)), offset)
        except OSError:
            os.ftruncate(self.log_fd, size)
            return
        try:
            os.fdatasync(self.log_fd)
        except OSError as error:
            raise self.not_synced(error) from error

    # Gathering, in the loop

    def add(self, incoming: Incoming) -> None:
        """A message for the next batch."""
        self._incoming.append(incoming)
        self.incoming_octets += incoming.prepared.message.size_bytes

    def add_fates(self, fates: Sequence[Fate], *, at_once: bool = False) -> None:
        """Outcomes for one of the next batches; `at_once`: for the next."""
        self._are_fates_urgent |= at_once
        if not self.fates:
            self._fates_since = time.monotonic()
        self._texts += [encode_event(attempted_event(fate)) for fate in fates]
        self.fates += fates
        self.uncommitted.add(fates)

    def add_act(self, act: Act | Correction) -> None:
        """An operator's act, or a correction of the times, for the next batch."""
        self._acts.append(act)

    def compact(self) -> bool:
        """While nothing else runs: takes up some contents of a sparse shared file, to be copied by the next batch."""
        if self.reserve.is_spent:
            self.files.retire_current()
            self._orphans += self.files.take_empty()
        file = self.files.sparsest()
        if file is None:
            return False
        rows = self.connection.execute(_SOME_OF_FILE, (file, _MOVES)).fetchall()
        for queue_id, offset, length in rows:
            try:
                self._moves.append((queue_id, file, self.files.read(file, offset, length)))
            except ContentMissing:
                self.files.leave_alone(file)
        return bool(self._moves)

    def is_urgent(self) -> bool:
        """See `commit.Work`."""
        return bool(self._incoming) or self._are_fates_urgent

    # Staging, in the loop

    def stage(self) -> Batch | None:
        """See `commit.Work`."""
        if self.reserve.is_spent and self._incoming:
            self._refuse_incoming(SpoolFull(f"the disk of {self._directory} is full; free some space"))
        batch = self._gather()
        if not batch.has_rows and not self.has_history:
            return None
        try:
            if batch.has_rows:
                self._write_rows(batch)
            self._note(batch)
            if batch.incoming and not (batch.fates or batch.acts):
                self._later(FATES_AFTER)
            elif self.has_history:
                self.history.write()  # first: a message that has left the queue is never without its end
            if batch.has_rows and not batch.chunks:
                self.connection.execute("COMMIT")
        except sqlite3.Error as error:
            fault = spool_error(error, f"writing {self._directory / DATABASE_NAME}")
            if not isinstance(fault, SpoolBroken):
                self.writer.rollback()
            batch.is_database_full = isinstance(fault, SpoolFull)
            self.settle(batch, fault)
            if isinstance(fault, SpoolBroken):
                raise fault from error
            return None
        if not batch.has_rows:
            return None
        if self.fates and batch.fates:
            self._later(0.0)  # not earlier: when this failed they wait, see `_take_back`
        self.running = batch
        batch.seconds = -time.perf_counter()  # until its end is added
        return batch

    @property
    def has_history(self) -> bool:
        """Something is to be written there, and may be: on a full disk the reserve is for what makes room again."""
        return self.history.has_waiting and not self.reserve.is_spent

    def _gather(self) -> Batch:
        most = self._most_fates if self._are_fates_due() else 0
        batch = Batch(self._incoming, self.fates[:most], self._texts[:most], self._acts)
        batch.moves, self._moves = self._moves, []
        batch.has_rows |= bool(batch.moves)
        self.fates, self._texts = self.fates[most:], self._texts[most:]
        self._incoming, self._acts = [], []
        self.incoming_octets = 0
        self._are_fates_urgent = False
        if self.fates and not most:
            self._later(FATES_AFTER)
        return batch

    def _are_fates_due(self) -> bool:
        return (
            not self._incoming
            or self._are_fates_urgent
            or bool(self._acts)
            or len(self.fates) >= FATES_TOGETHER
            or time.monotonic() - self._fates_since >= FATES_AFTER
        )

    def _refuse_incoming(self, error: SpoolError) -> None:
        batch = Batch(self._incoming, [], [], [])
        self._incoming = []
        self.incoming_octets = 0
        for one in batch.incoming:
            self._tell(one, error)

    def _write_rows(self, batch: Batch) -> None:
        writer = self.writer
        finished = self.own.finished if self.own is not None else {}
        writer.begin()
        if batch.incoming:
            try:
                writer.insert([one.prepared for one in batch.incoming], finished)
            except _UNSTORABLE:
                writer.rollback()
                writer.begin()
                self._insert_one_by_one(batch, finished)
        for move in batch.moves:
            writer.move(*move)
        if batch.fates:
            writer.apply(batch.fates, batch.texts)
        for act in batch.acts:
            writer.act(act)
        batch.chunks, batch.orphans = writer.chunks, writer.orphans

    def _insert_one_by_one(self, batch: Batch, finished: dict[str, tuple[int, int]]) -> None:
        """One message can't be stored: the others shall not suffer for it."""
        for one in batch.incoming:
            self.connection.execute("SAVEPOINT one")
            try:
                self.writer.insert([one.prepared], finished)
            except _UNSTORABLE as error:
                self.connection.execute("ROLLBACK TO one")
                self.writer.forget(one.prepared.queue_id)
                one.error = SpoolError(f"the message can't be stored ({error!r})")
            self.connection.execute("RELEASE one")

    def _note(self, batch: Batch) -> None:
        history = self.history
        for one in batch.incoming:
            if one.error is not None:
                continue
            envelope = one.envelope
            recipients = envelope.recipients
            size = one.prepared.message.size_bytes
            history.note(envelope.queue_id, one.text)
            kind = recipients[0].grant.kind._value_
            history.note_usage(envelope.arrived_at, envelope.origin, kind, recipients=len(recipients), octets=size)
            self.space.take(size)
        for fate, text in zip(batch.fates, batch.texts, strict=True):
            history.note(fate.queue_id, text)
        for act in batch.acts:
            for queue_id, event in act.events():
                history.note(queue_id, encode_event(event))

    # Committing, on the thread

    def commit(self, batch: Batch) -> None:
        """See `commit.Work`. Content files are synced before the rows that point into them are written."""
        if batch.chunks:
            try:
                self.files.write(batch.chunks)
                self.connection.execute("COMMIT")
            except sqlite3.Error as error:
                fault = spool_error(error, f"committing to {self._directory / DATABASE_NAME}")
                batch.is_database_full = isinstance(fault, SpoolFull)
                self._undo(fault)
                raise fault from error
            except SpoolError as fault:
                self._undo(fault)
                raise
        try:
            os.fdatasync(self.log_fd)
        except OSError as error:
            raise self.not_synced(error) from error
        self.committed(batch)

    def is_written(self, batch: Batch) -> bool:
        """See `commit.Work`."""
        return not batch.chunks

    def not_synced(self, error: OSError) -> SpoolError:
        """See `commit.Work`."""
        return spool_error(error, f"syncing the log of {self._directory / DATABASE_NAME}", is_sync=True)

    def committed(self, batch: Batch) -> None:
        """See `commit.Work`."""
        self._orphans += batch.orphans
        self._pages += self.writer.committed()
        batch.seconds += time.perf_counter()

    def _undo(self, fault: SpoolError) -> None:
        """What passes leaves a connection that goes on. After anything else nothing more is written, not even this."""
        if not isinstance(fault, SpoolBroken) and self.connection.in_transaction:
            try:
                self.connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                raise SpoolBroken(f"a transaction could not be undone: {error}") from error

    # Settling, in the loop

    def settle(self, batch: Batch, error: SpoolError | None) -> None:
        """See `commit.Work`."""
        self.running = None
        if error is not None:
            self._take_back(batch, error)
        elif batch.has_rows:
            metrics.sync_seconds.observe(batch.seconds)
            if batch.incoming:
                metrics.commit_messages.observe(len(batch.incoming))
            self._most_fates = min(_ALL, 2 * self._most_fates)
            self.uncommitted.committed(batch.fates)
            if batch.acts:
                self.uncommitted.rows_changed()
        for one in batch.incoming:
            self._tell(one, one.error if error is None else error)

    def _tell(self, one: Incoming, error: SpoolError | None) -> None:
        file = one.prepared.message.content.file
        if file is not None and self.own is not None:
            if error is None:
                self.own.stored(file)
            else:
                self.own.not_stored(file)
        try:
            one.durable(error)
        except Exception as fault:
            self._report(fault)

    def _take_back(self, batch: Batch, error: SpoolError) -> None:
        for act in batch.acts:
            act.error = error
        if isinstance(error, SpoolBroken):
            return
        self.writer.rollback()  # if the thread has done so already: takes stock anew
        self.fates[:0] = batch.fates
        self._texts[:0] = batch.texts
        if batch.is_database_full:
            self.reserve.spend()
            self._most_fates = max(16, min(self._most_fates, len(batch.fates) // 2))
            self._pages = CHECKPOINT_PAGES  # with the log moved into the tables, the next batch may reuse its room
        self._later(SPACE_SECONDS)
        withdrawn = encode_event(Withdrawn(self._clock(), str(error)))
        for one in batch.incoming:
            self.history.note(one.envelope.queue_id, withdrawn)

    def broken(self, error: SpoolBroken) -> None:
        """See `commit.Work`."""
        self.broken_by = error
        if isinstance(error, SpoolDamaged):
            mark(self._directory)
        for act in self._acts:
            act.error = error
        self._acts = []
        self._refuse_incoming(error)
        self._on_broken(error)

    # Upkeep, on the thread

    def wants_upkeep(self) -> bool:
        """See `commit.Work`."""
        return (
            self._pages >= CHECKPOINT_PAGES
            or bool(self._orphans)
            or self.space.taken >= SPACE_OCTETS
            or time.monotonic() - self._space_read_at >= SPACE_SECONDS
            or self.history.wants_upkeep(self._clock())
        )

    def upkeep(self, is_idle: bool) -> None:
        """See `commit.Work`."""
        if self._orphans:
            orphans, self._orphans = self._orphans, []
            self.files.remove(orphans)
        if self.reserve.is_spent:
            # What is cut off the end of the database need not be copied there from the log: that would take room.
            self._vacuum(_VACUUM_PAGES_WHEN_FULL)
        if self._pages >= CHECKPOINT_PAGES:
            self._pages = 0  # what a reader's snapshot keeps in the log is tried again after as many pages
            self._run("PRAGMA wal_checkpoint(PASSIVE)", "checkpointing")
        now = self._clock()
        if self.history.wants_upkeep(now):
            self.history.upkeep(now)
        if is_idle and self.space.reusable_bytes > _VACUUM_ABOVE * PAGE_SIZE:
            self._vacuum(_VACUUM_PAGES)
        self._read_space()
        if self.reserve.is_spent and not self.fates:
            self._run("PRAGMA wal_checkpoint(TRUNCATE)", "checkpointing")
            self.history.shrink()
            self.reserve.restore(self.space.free_bytes)

    @property
    def has_idle_work(self) -> bool:
        """Much of the database is free pages: give some back to the filesystem while nothing else is to do."""
        return self.space.reusable_bytes > _VACUUM_ABOVE * PAGE_SIZE

    def _vacuum(self, pages: int) -> None:
        """`execute` would free a single page: the statement wants to be stepped, which `executescript` does."""
        try:
            self.connection.executescript(f"PRAGMA incremental_vacuum({pages})")
        except sqlite3.Error as error:
            fault = spool_error(error, "giving free pages back")
            if isinstance(fault, SpoolBroken):
                raise fault from error
        self._pages += 2 * pages

    def _run(self, statement: str, doing: str) -> None:
        """A full disk is no end here: what was acknowledged is in the log, and stays there."""
        try:
            self.connection.execute(statement).fetchone()
        except sqlite3.Error as error:
            fault = spool_error(error, f"{doing} {self._directory / DATABASE_NAME}")
            if isinstance(fault, SpoolBroken):
                raise fault from error

    def _read_space(self) -> None:
        self._space_read_at = time.monotonic()
        free_pages = int(self.connection.execute("PRAGMA freelist_count").fetchone()[0])
        try:
            self.space.read(free_pages * PAGE_SIZE)
        except OSError as error:
            raise spool_error(error, f"reading the free space of {self._directory}") from error

    @property
    def log_bytes(self) -> int:
        """Length of the write-ahead log file."""
        with contextlib.suppress(FileNotFoundError):
            return (self._directory / f"{DATABASE_NAME}-wal").stat().st_size
        return 0

    def close(self) -> None:
        """Closes everything, unless it is broken: a close would sync again, and succeed."""
        if self.broken_by is None:
            self.files.remove(self._orphans)
            self.files.close()
            os.close(self.log_fd)
            self.connection.close()
            self.history.close()
