"""Receipts on disk: one row for each arrival, durable before the client hears 250.

One small SQLite database beside the spool, written by every worker of the server and read by any `posthouse test` on the
machine. A rollback journal, not WAL: a reader then needs no right to write, and leaves no file of its own behind.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from posthouse.tester.collector import CollectorFault, Receipt
from posthouse.tester.keeping import hand_over, make_corner
from posthouse.tester.token import Purpose

RECEIPTS_FILE = Path("tester") / "receipts.db"
"""Where they are, below the data directory."""

MOST_PER_TOKEN = 100
"""Arrivals kept of one token: a loop, or somebody who sends a token again and again, must not fill the disk."""

_BUSY_SECONDS = 10.0
_PURGE_SECONDS = 3600.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS receipt (
    id INTEGER PRIMARY KEY,
    test_id INTEGER NOT NULL,
    case_number INTEGER NOT NULL,
    purpose INTEGER NOT NULL,
    token TEXT NOT NULL,
    arrived_at REAL NOT NULL,
    client TEXT NOT NULL,
    hello_name TEXT NOT NULL,
    reverse_path TEXT NOT NULL,
    forward_path TEXT NOT NULL,
    received BLOB NOT NULL,
    header TEXT NOT NULL,
    size_bytes INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS receipt_of_test ON receipt (test_id, token);
CREATE INDEX IF NOT EXISTS receipt_by_age ON receipt (arrived_at);
"""
_COLUMNS = Receipt.__struct_fields__
_INSERT = f"INSERT INTO receipt ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM receipt WHERE test_id = ? ORDER BY id"  # noqa: S608


class ReceiptsFull(Exception):
    """No room for one more receipt now; the text says of what."""


class ReceiptStore:
    """The writer's side. Not for two threads at once; several processes may each have one on the same file.

    `keep_seconds` is how long receipts are remembered.
    """

    def __init__(self, path: Path, keep_seconds: float) -> None:
        """Opens the file, or makes it. CollectorFault when that fails."""
        self._path = path
        self._keep_seconds = keep_seconds
        self._purged_at = 0.0
        try:
            make_corner(path.parent)
            self._database = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.executescript(_SCHEMA)
            hand_over(path)
        except (OSError, sqlite3.Error) as error:
            raise CollectorFault(f"can't keep receipts in {path}: {error}") from error

    def record(self, receipts: tuple[Receipt, ...]) -> None:
        """Keeps them all or none; durable when it returns. ReceiptsFull, CollectorFault."""
        try:
            self._purge(receipts[0].arrived_at)
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for receipt in receipts:
                    self._insert(receipt)
                self._database.execute("COMMIT")
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise CollectorFault(f"can't keep a receipt in {self._path}: {error}") from error

    def _insert(self, receipt: Receipt) -> None:
        (seen,) = self._database.execute(
            "SELECT count(*) FROM receipt WHERE test_id = ? AND token = ?", (receipt.test_id, receipt.token)
        ).fetchone()
        if seen >= MOST_PER_TOKEN:
            raise ReceiptsFull(f"this probe has arrived {seen} times, which is proof enough")
        values = [getattr(receipt, name) for name in _COLUMNS]
        values[_COLUMNS.index("received")] = msgspec.json.encode(receipt.received)
        self._database.execute(_INSERT, values)

    def _purge(self, now: float) -> None:
        if now - self._purged_at >= _PURGE_SECONDS:
            self._database.execute("DELETE FROM receipt WHERE arrived_at < ?", (now - self._keep_seconds,))
            self._purged_at = now

    def close(self) -> None:
        """Nothing more is recorded."""
        self._database.close()


class LocalCollector:
    """The collector of this machine, asked through its data directory (a CollectorClient)."""

    def __init__(self, domain: str, path: Path) -> None:
        """`path` is the receipts file; it need not be there yet."""
        self._domain = domain
        self._path = path

    @property
    def domain(self) -> str:
        """The domain whose mail the collector takes."""
        return self._domain

    async def receipts(self, test_id: int) -> tuple[Receipt, ...]:
        """All arrivals of that test so far. CollectorFault."""
        return await asyncio.to_thread(read_receipts, self._path, test_id)

    async def close(self) -> None:
        """Nothing is held open."""


def read_receipts(path: Path, test_id: int) -> tuple[Receipt, ...]:
    """The receipts of a test in order of arrival; none when no collector has ever kept one there. CollectorFault."""
    try:
        if not path.exists():
            return ()
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        ) as database:
            return tuple(_receipts(database, test_id))
    except (OSError, sqlite3.Error, msgspec.DecodeError, ValueError) as error:
        raise CollectorFault(f"can't read the receipts in {path}: {error}") from error


def _receipts(database: sqlite3.Connection, test_id: int) -> Iterator[Receipt]:
    for row in database.execute(_SELECT, (test_id,)):
        values = dict(zip(_COLUMNS, row, strict=True))
        values["purpose"] = Purpose(values["purpose"])
        values["received"] = msgspec.json.decode(values["received"], type=tuple[str, ...])
        yield Receipt(**values)
