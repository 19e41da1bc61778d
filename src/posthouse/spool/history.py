"""What happened to each message: a SQLite file a day (a busy day has several), so that forgetting is an unlink.

The history is for people; the queue is the promise. It is written before the queue's commit (a message that has left the
queue is never without its end), with synchronous=NORMAL, and a fault in it is counted and shown but never refuses mail.
"""

import sqlite3
import time
from pathlib import Path

import msgspec

from posthouse.mail.envelope import Origin
from posthouse.spool.rows import MultiInsert

DIRECTORY_NAME = "history"
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
_CHECKPOINT_EVENTS = 8000
_CLIENTS_MAX = 10_000
_PART_MAX = 256 * 1024 * 1024
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


class History:
    """The writing side, owned by one spool. `note_*` and `write` belong to the loop, `upkeep` to the thread."""

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
        self._part_max = min(_PART_MAX, max(limits.size_bytes // 8, 1))
        self._path: Path | None = None
        self._connection: sqlite3.Connection | None = None
        self._open_part(now)

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

    def write(self) -> None:
        """Puts what was noted into the day's file, in one transaction that nobody waits for."""
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
                connection.execute("COMMIT")
            except sqlite3.Error:
                self._give_up()
        self._events = []
        if self._usage:
            self._usage = {}
        if self._refusals:
            self._refusals = {}

    def wants_upkeep(self, now: int) -> bool:
        """A checkpoint or a new day is due."""
        return self._since_checkpoint >= _CHECKPOINT_EVENTS or now // DAY_MS != self._day

    def upkeep(self, now: int) -> None:
        """Checkpoints, begins a new file when the day or the file is over, forgets what is too old or too much."""
        if self._since_checkpoint >= _CHECKPOINT_EVENTS and self._connection is not None:
            self._since_checkpoint = 0
            try:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.Error:
                self.errors += 1
        if now // DAY_MS != self._day or self._is_part_full():
            self._open_part(now)

    def shrink(self) -> None:
        """Gives back the room of the log, on a disk that is full."""
        if self._connection is not None:
            try:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error:
                self.errors += 1

    def _is_part_full(self) -> bool:
        return self._path is not None and self._path.exists() and self._path.stat().st_size >= self._part_max

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

    def _open_part(self, now: int) -> None:
        self.close()
        self._day = now // DAY_MS
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            path = self._part(now)
            try:
                self._connection = _open(path)
            except sqlite3.DatabaseError:  # damaged by a power cut, say: kept for its owner, and begun anew
                self.errors += 1
                _set_aside(path)
                self._connection = _open(path)
            self._path = path
            self._forget_old(now)
        except (OSError, sqlite3.Error):
            self.errors += 1

    def _part(self, now: int) -> Path:
        """The day's last file, or the next one when that is large."""
        day = day_of(now)
        parts = sorted(self._directory.glob(f"{day}-???.db"))
        if not parts:
            return self._directory / f"{day}-000.db"
        if parts[-1].stat().st_size < self._part_max:
            return parts[-1]
        return self._directory / f"{day}-{int(parts[-1].stem[-3:]) + 1:03d}.db"

    def _forget_old(self, now: int) -> None:
        keep_from = day_of(now - (self._limits.days - 1) * DAY_MS)
        total = 0
        for path in sorted(self._directory.glob("????????-???.db"), reverse=True):
            total += path.stat().st_size
            if path != self._path and (path.name < keep_from or total > self._limits.size_bytes):
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)


def day_of(now: int) -> str:
    """A day (UTC) as the names of its files begin: "20261124"."""
    return time.strftime("%Y%m%d", time.gmtime(now / 1000))


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
