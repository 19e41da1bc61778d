"""The schema of a shard's database, how it is opened, and what its errors mean.

The statements follow from measurements: 4 KB pages; secure_delete off (Debian's builds have it on, which writes 62 % more);
no automatic checkpoint, since that swallows sync errors; `state` in the partial index, without which SQLite 3.40 reads the
table to count; content last in its row, so that the rest is read without its overflow pages.
"""

import errno
import os
import sqlite3
from pathlib import Path

from posthouse.mail.grant import GrantKind
from posthouse.spool.api import SpoolBroken, SpoolDamaged, SpoolError, SpoolForeign, SpoolFull
from posthouse.spool.read_only import tolerate_bad_text
from posthouse.spool.shard import sync_directory

DATABASE_NAME = "queue.db"
VERSION = 1
PAGE_SIZE = 4096
APPLICATION_ID = 0x50534854  # "PSHT"

QUEUED, HELD, SETTLED = 1, 2, 3
"""`recipient.state`."""

_KINDS = ", ".join(f"'{kind}'" for kind in GrantKind)

_TABLES = f"""
CREATE TABLE message(
  id INTEGER PRIMARY KEY,         -- queue id
  arrived INTEGER NOT NULL,       -- ms since 1970
  reverse_path BLOB NOT NULL,     -- local part (unquoted octets) @ domain; empty for the null path
  envelope TEXT NOT NULL,         -- JSON: origin and MAIL parameters
  size INTEGER NOT NULL,          -- octets of trace and content
  recipients INTEGER NOT NULL,
  form INTEGER NOT NULL,          -- DotForm, plus 4 when the content is 8-bit
  checksum INTEGER,               -- CRC-32 of a content that is a row or a file of its own
  content_file TEXT,              -- name in content/, NULL when the content is here
  content_offset INTEGER,
  content_length INTEGER NOT NULL,
  trace BLOB NOT NULL,
  content BLOB) STRICT;
CREATE TABLE recipient(
  message INTEGER NOT NULL REFERENCES message(id),
  n INTEGER NOT NULL,
  forward_path BLOB NOT NULL,
  notify INTEGER NOT NULL,
  original_recipient TEXT NOT NULL,
  grant_kind TEXT NOT NULL CHECK(grant_kind IN ({_KINDS})),
  grant_slug TEXT NOT NULL,
  grant_reason TEXT NOT NULL CHECK(grant_reason <> ''),
  destination TEXT NOT NULL,
  next_at INTEGER NOT NULL,       -- ms since 1970
  state INTEGER NOT NULL DEFAULT 1 CHECK(state IN (1, 2, 3)),  -- queued, held, settled
  attempts INTEGER NOT NULL DEFAULT 0,
  notices INTEGER NOT NULL DEFAULT 0,
  bounce INTEGER NOT NULL DEFAULT 0,  -- 1: an operator wants it returned to its sender
  last TEXT,                      -- JSON: the last attempt
  PRIMARY KEY(message, n)) STRICT, WITHOUT ROWID;
CREATE INDEX due ON recipient(destination, next_at, message, n, state) WHERE state = 1;
CREATE INDEX held ON recipient(message) WHERE state = 2;
CREATE INDEX stored ON message(content_file) WHERE content_file IS NOT NULL;
"""


_KNOBS = (
    "synchronous=NORMAL",  # the sync of each transaction is ours, see `batch`
    "wal_autocheckpoint=0",
    "secure_delete=OFF",
    "cache_size=-8000",
    "journal_size_limit=67108864",
)


def open_writer(directory: Path) -> sqlite3.Connection:
    """The shard's database for writing, made if missing. SpoolForeign for a newer schema, SpoolDamaged for a damaged file.

    The loop's thread and the commit thread use it, never both at once (see `spool.commit`), so it is not tied to a thread.
    """
    path = directory / DATABASE_NAME
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
        tolerate_bad_text(connection)
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            connection.close()
            raise SpoolForeign(
                f"{path} was written by a newer Posthouse (schema {version}, this program knows {VERSION}); start that version instead"
            )
        if version == 0:
            _prepare(connection)
        connection.execute("PRAGMA journal_mode=WAL")
        for knob in _KNOBS:
            connection.execute(f"PRAGMA {knob}")
        if version == 0:
            _make_tables(connection)
    except sqlite3.Error as error:
        raise spool_error(error, f"opening {path}") from error
    except UnicodeDecodeError as error:  # SQLite's words about a damaged schema may be no text
        raise SpoolDamaged(f"opening {path}: the database is damaged ({error.object!r})") from error
    return connection


def create(path: Path) -> sqlite3.Connection:
    """A new database of a shard, whole and synced, without a log beside it, when it is closed after a commit."""
    connection = sqlite3.connect(path, isolation_level=None)
    _prepare(connection)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    _make_tables(connection)
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute(f"PRAGMA page_size={PAGE_SIZE}")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")


def _make_tables(connection: sqlite3.Connection) -> None:
    connection.executescript(
        f"BEGIN; {_TABLES} PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={VERSION}; COMMIT;"
    )


def open_log(directory: Path) -> int:
    """A descriptor of the write-ahead log, to sync it by; the log's entry in its directory is durable. SpoolBroken."""
    path = directory / f"{DATABASE_NAME}-wal"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # SQLite made it when it looked at the schema
        sync_directory(directory)
    except OSError as error:
        raise spool_error(error, f"opening {path}") from error
    return descriptor


def open_reader(directory: Path) -> sqlite3.Connection:
    """A second connection of the same process, for short reads while a COMMIT runs on the first."""
    connection = sqlite3.connect(directory / DATABASE_NAME, isolation_level=None, timeout=5.0)
    tolerate_bad_text(connection)
    connection.execute("PRAGMA query_only=ON")
    connection.execute("PRAGMA cache_size=-4000")
    return connection


def spool_error(error: sqlite3.Error | OSError, doing: str, *, is_sync: bool = False) -> SpoolError:
    """What an error of SQLite or of the system means for the spool: a full disk passes, and so does a want of descriptors;
    anything else is the end.

    A failed sync is always the end, even for lack of space: after it nobody knows which pages are on disk. (A file that could
    not be opened was not synced in vain: nothing of it is promised to anyone.)
    """
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) or 0
        if code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
            return SpoolDamaged(
                f"{doing}: the database is damaged ({error}); the server saves what can be read of it when it starts"
            )
        is_full = code & 0xFF == sqlite3.SQLITE_FULL
        name = getattr(error, "sqlite_errorname", "") or ""
        words = f"{doing}: {error}" + (f" ({name})" if name else "")
    else:
        if error.errno in {errno.EMFILE, errno.ENFILE}:
            return SpoolError(f"no descriptor is free for {doing}; raise LimitNOFILE, or lower limits.connections")
        is_full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        words = f"{doing}: {error.strerror or error}"
    if is_full and not is_sync:
        return SpoolFull(f"the disk is full ({words}); free some space")
    return SpoolBroken(f"the disk failed ({words}); check the disk, then start again")
