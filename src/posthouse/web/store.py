"""Results that are over, on disk for as long as they are kept: one row a test in a small SQLite database of the web's own."""

import sqlite3
import threading
import zlib
from pathlib import Path

import msgspec

from posthouse.web.document import RelayTest

RESULTS_FILE = Path("web") / "tests.db"
"""Where they are, below the data directory."""

MOST_KEPT = 20_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS test (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    expires_at REAL NOT NULL,
    document BLOB NOT NULL
) STRICT;
"""


class StoreFault(Exception):
    """Results can't be kept or read now; the text is one sentence."""


class ResultStore:
    """May be called from any thread; it blocks, so not from the event loop."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it. StoreFault."""
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")  # a result that a crash takes is tested again
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreFault(f"can't keep results in {path}: {error}") from error

    def keep(self, document: RelayTest, now: float) -> None:
        """Keeps a result until it expires; forgets those that have, and the oldest beyond MOST_KEPT. StoreFault."""
        packed = zlib.compress(msgspec.json.encode(document))
        try:
            with self._lock:
                self._database.execute(
                    "INSERT OR REPLACE INTO test (id, expires_at, document) VALUES (?, ?, ?)",
                    (document.id, document.expires_at, packed),
                )
                self._database.execute("DELETE FROM test WHERE expires_at < ?", (now,))
                self._database.execute(
                    "DELETE FROM test WHERE number <= (SELECT max(number) FROM test) - ?", (MOST_KEPT,)
                )
        except sqlite3.Error as error:
            raise StoreFault(f"can't keep a result in {self._path}: {error}") from error

    def find(self, test_id: str, now: float) -> RelayTest | None:
        """The result of that id, None when there is none (any more). StoreFault."""
        try:
            with self._lock:
                row = self._database.execute(
                    "SELECT document FROM test WHERE id = ? AND expires_at >= ?", (test_id, now)
                ).fetchone()
            return None if row is None else msgspec.json.decode(zlib.decompress(row[0]), type=RelayTest)
        except (sqlite3.Error, zlib.error, msgspec.DecodeError) as error:
            raise StoreFault(f"can't read a result in {self._path}: {error}") from error

    def close(self) -> None:
        """Nothing more is kept."""
        with self._lock:
            self._database.close()
