"""What happened to each message: one SQLite file a day beside the queue, so that forgetting a day is an unlink.

The history is for people; the queue is the promise. It is written before the queue's commit (a message that has left the
queue is never without its end), with synchronous=NORMAL, and a fault in it is counted and shown but never refuses mail.
"""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from posthouse.mail.envelope import Origin
from posthouse.spool.record import HistoryEvent, decode_event
from posthouse.spool.rows import MultiInsert

DIRECTORY_NAME = "history"
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
_CHECKPOINT_EVENTS = 8000
_CLIENTS_MAX = 10_000
OTHERS = "others"

_TABLES = """
BEGIN;
CREATE TABLE IF NOT EXISTS event(
  queue_id INTEGER NOT NULL, n INTEGER NOT NULL, data TEXT NOT NULL, PRIMARY KEY(queue_id, n)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS usage(
  hour INTEGER NOT NULL, client TEXT NOT NULL, login TEXT NOT NULL, grant_kind TEXT NOT NULL,
  messages INTEGER NOT NULL, recipients INTEGER NOT NULL, octets INTEGER NOT NULL,
  PRIMARY KEY(hour, client, login, grant_kind)) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS refusal(
  hour INTEGER NOT NULL, client TEXT NOT NULL, login TEXT NOT NULL, slug TEXT NOT NULL, times INTEGER NOT NULL,
  PRIMARY KEY(hour, client, login, slug)) STRICT, WITHOUT ROWID;
PRAGMA user_version=1;
COMMIT;
"""

_insert_events = MultiInsert("event", "queue_id,n,data")
_insert_usage = MultiInsert(
    "usage",
    "hour,client,login,grant_kind,messages,recipients,octets",
    conflict="ON CONFLICT DO UPDATE SET messages=messages+excluded.messages, "
    "recipients=recipients+excluded.recipients, octets=octets+excluded.octets",
)
_insert_refusals = MultiInsert(
    "refusal", "hour,client,login,slug,times", conflict="ON CONFLICT DO UPDATE SET times=times+excluded.times"
)


class HistoryLimits(msgspec.Struct, frozen=True):
    """How long the history goes back, and how many octets it may take; the oldest day goes first, never today."""

    days: int = 14
    size_bytes: int = 2_000_000_000


class UsageKey(msgspec.Struct, frozen=True):
    """Who used the relay by which right in which hour (milliseconds since 1970)."""

    hour: int
    client: str
    login: str
    grant: str


class History:
    """The writing side, owned by one spool. `note_*` and `stage` belong to the loop, `commit` and `upkeep` to the thread."""

    def __init__(self, directory: Path, limits: HistoryLimits, now: int) -> None:
        self._directory = directory
        self._limits = limits
        self._events: list[tuple[int, int, str]] = []
        self._usage: dict[tuple[int, str, str, str], list[int]] = {}
        self._refusals: dict[tuple[int, str, str, str], int] = {}
        self._clients: set[str] = set()
        self._clients_hour = 0
        self._n = time.time_ns() // 1000  # grows across restarts too: an event is at most one a microsecond
        self._since_checkpoint = 0
        self.errors = 0
        """Batches of history that could not be written."""
        self._day = -1
        self._connection: sqlite3.Connection | None = None
        self._open_day(now)
        self._forget_old(now)

    def note(self, queue_id: int, event_text: str) -> None:
        """One event of one message, as JSON."""
        self._n += 1
        self._events.append((queue_id, self._n, event_text))

    def note_usage(self, now: int, origin: Origin, grant: str, *, recipients: int, octets: int) -> None:
        """Adds one message to what a client used in this hour."""
        hour = now - now % HOUR_MS
        key = (hour, self._client(hour, origin.client, origin.local_uid), origin.login, grant)
        found = self._usage.get(key)
        if found is None:
            self._usage[key] = [1, recipients, octets]
        else:
            found[0] += 1
            found[1] += recipients
            found[2] += octets

    def note_refusal(self, now: int, client: str, login: str, slug: str) -> None:
        """One refusal more."""
        hour = now - now % HOUR_MS
        key = (hour, self._client(hour, client, -1), login, slug)
        self._refusals[key] = self._refusals.get(key, 0) + 1

    @property
    def has_waiting(self) -> bool:
        """Something is to be written."""
        return bool(self._events or self._usage or self._refusals)

    def stage(self) -> None:
        """Runs the statements; `commit` ends them."""
        connection = self._connection
        self._since_checkpoint += len(self._events)
        if connection is not None:
            try:
                connection.execute("BEGIN")
                _insert_events.run(connection, self._events)
                if self._usage:
                    _insert_usage.run(connection, [(*key, *counts) for key, counts in self._usage.items()])
                if self._refusals:
                    _insert_refusals.run(connection, [(*key, times) for key, times in self._refusals.items()])
            except sqlite3.Error:
                self._give_up()
        self._events = []
        if self._usage:
            self._usage = {}
        if self._refusals:
            self._refusals = {}

    def commit(self) -> None:
        """Ends what `stage` began."""
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self._give_up()

    def wants_upkeep(self, now: int) -> bool:
        """A checkpoint or a new day is due."""
        return self._since_checkpoint >= _CHECKPOINT_EVENTS or now // DAY_MS != self._day

    def upkeep(self, now: int) -> None:
        """Begins a new day's file, forgets old days, checkpoints."""
        if now // DAY_MS != self._day:
            self._open_day(now)
            self._forget_old(now)
        elif self._since_checkpoint >= _CHECKPOINT_EVENTS and self._connection is not None:
            self._since_checkpoint = 0
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error:
                self.errors += 1

    def last_queue_id(self) -> int:
        """The greatest id of today's file, 0 if none."""
        if self._connection is None:
            return 0
        return int(self._connection.execute("SELECT coalesce(max(queue_id), 0) FROM event").fetchone()[0])

    def close(self) -> None:
        """Closes the day's file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _client(self, hour: int, client: str, local_uid: int) -> str:
        """The client as counted: after 10,000 different ones in an hour the rest are one, so a flood costs bounded room."""
        if hour != self._clients_hour:
            self._clients_hour = hour
            self._clients.clear()
        if not client:
            return f"uid {local_uid}" if local_uid >= 0 else ""
        if client not in self._clients:
            if len(self._clients) >= _CLIENTS_MAX:
                return OTHERS
            self._clients.add(client)
        return client

    def _give_up(self) -> None:
        self.errors += 1
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._connection = None

    def _open_day(self, now: int) -> None:
        self.close()
        self._day = now // DAY_MS
        path = self._directory / day_name(now)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._connection = _open(path)
        except sqlite3.DatabaseError:  # damaged by a power cut, say: keep it for its owner and begin anew
            self.errors += 1
            _set_aside(path)
            try:
                self._connection = _open(path)
            except sqlite3.Error:
                self._connection = None
        except OSError:
            self.errors += 1

    def _forget_old(self, now: int) -> None:
        keep_from = day_name(now - (self._limits.days - 1) * DAY_MS)
        days = sorted(self._directory.glob("????????.db"), reverse=True)
        total = 0
        for path in days:
            total += path.stat().st_size
            if path.name != day_name(now) and (path.name < keep_from or total > self._limits.size_bytes):
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)


def day_name(now: int) -> str:
    """The file of a day (UTC): "20261124.db"."""
    return time.strftime("%Y%m%d.db", time.gmtime(now / 1000))


def read_events(shard_directory: Path, queue_id: int) -> list[HistoryEvent]:
    """All that is remembered of a message, oldest first; empty when nothing is."""
    found: list[tuple[int, str]] = []
    for connection in _open_days(shard_directory, queue_id >> 20, None):
        found += connection.execute("SELECT n, data FROM event WHERE queue_id=?", (queue_id,)).fetchall()
    return [decode_event(text) for _, text in sorted(found)]


def _open_days(shard_directory: Path, since: int, until: int | None) -> Iterator[sqlite3.Connection]:
    """Read-only connections to the days between two times (ms), one after the other."""
    first = day_name(max(since - DAY_MS, 0))
    last = day_name(until) if until is not None else "99999999.db"
    for path in sorted((shard_directory / DIRECTORY_NAME).glob("????????.db")):
        if first <= path.name <= last:
            connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=2.0)
            try:
                yield connection
            finally:
                connection.close()


def read_usage(shard_directory: Path, since: int, until: int) -> Iterable[tuple[UsageKey, int, int, int]]:
    """(key, messages, recipients, octets) of each hour from `since` until before `until`."""
    for connection in _open_days(shard_directory, since, until):
        for row in connection.execute("SELECT * FROM usage WHERE hour>=? AND hour<?", (since, until)):
            yield UsageKey(*row[:4]), row[4], row[5], row[6]


def read_refusals(shard_directory: Path, since: int, until: int) -> Iterable[tuple[UsageKey, int]]:
    """(key, times) of each hour; the key's `grant` holds the refusal's slug."""
    for connection in _open_days(shard_directory, since, until):
        for row in connection.execute("SELECT * FROM refusal WHERE hour>=? AND hour<?", (since, until)):
            yield UsageKey(*row[:4]), row[4]


def _open(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
    for knob in ("journal_mode=WAL", "synchronous=NORMAL", "wal_autocheckpoint=0", "secure_delete=OFF"):
        connection.execute(f"PRAGMA {knob}")
    connection.executescript(_TABLES)
    return connection


def _set_aside(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(part.with_name(f"damaged-{part.name}"))
