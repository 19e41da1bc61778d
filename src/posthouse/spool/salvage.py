"""A damaged database: what can be read of it goes into a new one, the old one is kept for its owner, with a list of what is lost.

The swap survives a crash at any point, since each step is a rename and the next start goes on where the last one ended:

    salvaged-part.db   being filled; worthless after a crash, begun again
    salvaged.db        complete and synced: from here on it is the queue, whatever else is there
    damaged-N.db       the old database, with its log; damaged-N.json tells what became of it
    damaged            found by a running server: salvage at the next start
"""

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from posthouse.observe import log
from posthouse.spool.history import DIRECTORY_NAME as HISTORY
from posthouse.spool.read_only import open_read_only
from posthouse.spool.record import Accepted, Attempted, HistoryEvent, Withdrawn, decode_event, octets_path
from posthouse.spool.schema import DATABASE_NAME, PAGE_SIZE, create, spool_error
from posthouse.spool.shard import sync_directory

_MARK = "damaged"
_PART, _WHOLE = "salvaged-part.db", "salvaged.db"
_COPY = "salvage-copy.db"
_MOST_ROWS = 50_000_000  # of one walk through a tree that may lead in circles
_WALKS = (
    "SELECT id FROM message ORDER BY id",
    "SELECT id FROM message ORDER BY id DESC",
    "SELECT message FROM recipient ORDER BY message, n",
    "SELECT message FROM recipient ORDER BY message DESC, n DESC",
    "SELECT message FROM recipient INDEXED BY due WHERE state = 1",
)


class Report(msgspec.Struct, frozen=True):
    """`damaged-N.json`: ids of the messages that are lost (accepted, by the history, and neither ended nor rescued)."""

    at: int
    rescued: int
    lost: tuple[int, ...]


def mark(directory: Path) -> None:
    """The database turned out damaged: the next start salvages it."""
    with contextlib.suppress(OSError):
        (directory / _MARK).touch()


def finish(directory: Path) -> bool:
    """Goes on with a salvage that a crash interrupted. True when the database must be salvaged now."""
    for path in (*directory.glob(f"{_PART}*"), *directory.glob(f"{_COPY}*")):
        path.unlink()
    if (directory / _WHOLE).exists():
        _swap(directory)
    return (directory / _MARK).exists()


def salvage(directory: Path, now: int) -> Report:
    """Makes a new database of what can be read of the damaged one. SpoolError when the disk does not allow it.

    Nobody else may have the database open.
    """
    known = unfinished(directory)
    try:
        for path in directory.glob(f"{_PART}*"):
            path.unlink()
        rescued = _fill(directory, now)
        report = Report(now, len(rescued), tuple(sorted(known - rescued)))
        number = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now / 1000))
        (directory / f"damaged-{number}.json").write_bytes(msgspec.json.encode(report))
        (directory / _PART).rename(directory / _WHOLE)
        sync_directory(directory)
        _swap(directory, number)
    except (OSError, sqlite3.Error) as error:
        raise spool_error(error, f"salvaging {directory / DATABASE_NAME}") from error
    log.error(
        "queue-salvaged",
        directory=str(directory),
        rescued=report.rescued,
        lost=len(report.lost),
        words="the database was damaged; `posthouse queue verify` tells what is lost",
    )
    return report


def reports(directory: Path) -> Iterator[tuple[Path, Report]]:
    """What earlier salvages had to leave behind."""
    for path in sorted(directory.glob("damaged-*.json")):
        with contextlib.suppress(OSError, msgspec.DecodeError):
            yield path, msgspec.json.decode(path.read_bytes(), type=Report)


def _swap(directory: Path, number: str = "") -> None:
    number = number or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    for suffix in ("-wal", ""):  # the log first: it must never be taken for the new database's
        old = directory / f"{DATABASE_NAME}{suffix}"
        if old.exists():
            old.rename(directory / f"damaged-{number}.db{suffix}")
    (directory / f"{DATABASE_NAME}-shm").unlink(missing_ok=True)
    sync_directory(directory)
    (directory / _WHOLE).rename(directory / DATABASE_NAME)
    (directory / _MARK).unlink(missing_ok=True)
    sync_directory(directory)


def _fill(directory: Path, now: int) -> set[int]:
    """Copies what can be read; the ids of the messages that were."""
    create(directory / _PART).close()  # its first page is on disk now
    new = sqlite3.connect(directory / _PART, isolation_level=None)
    new.execute("PRAGMA synchronous=FULL")
    try:
        rescued: set[int] = set()
        with contextlib.suppress(OSError, sqlite3.Error), contextlib.closing(_open_damaged(directory)) as old:
            new.execute("BEGIN")
            for queue_id in _ids(old):
                if _copy(old, new, queue_id, now):
                    rescued.add(queue_id)
        if new.in_transaction:
            new.execute("COMMIT")
        return rescued
    finally:
        new.close()
        for path in directory.glob(f"{_COPY}*"):
            path.unlink()


def _open_damaged(directory: Path) -> sqlite3.Connection:
    """Without leave to write: a close would move the log into the database, and what is damaged stays as it was found.

    One whose first page is damaged says nothing of the rest; a copy of it gets the first page that every such database has.
    """
    path = directory / DATABASE_NAME
    with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
        connection = _connect(path)
        if {row[0] for row in connection.execute("SELECT name FROM sqlite_master")} >= {"message", "recipient", "due"}:
            return connection
    copy = directory / _COPY
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    fresh = directory / _PART
    with copy.open("r+b") as file, fresh.open("rb") as first:
        page = bytearray(first.read(PAGE_SIZE))
        page[28:32] = bytes(4)  # how many pages there are: 0 is "as long as the file"
        file.write(page)
    return _connect(copy)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
    connection.text_factory = lambda octets: octets.decode("utf-8", "surrogateescape")
    return connection


def _ids(old: sqlite3.Connection) -> list[int]:
    found: set[int] = set()
    for walk in _WALKS:
        with contextlib.suppress(sqlite3.Error):
            for count, (queue_id,) in enumerate(old.execute(walk)):
                if isinstance(queue_id, int) and queue_id > 0:
                    found.add(queue_id)
                if count > _MOST_ROWS:
                    break
    return sorted(found)


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, queue_id: int, now: int) -> bool:
    """Whole or not at all. What may change in a recipient's row is put back to its beginning where it can't be right."""
    try:
        message = old.execute("SELECT * FROM message WHERE id=?", (queue_id,)).fetchone()
        recipients = old.execute("SELECT * FROM recipient WHERE message=? ORDER BY n", (queue_id,)).fetchall()
    except (sqlite3.Error, OverflowError):
        return False
    if message is None or not recipients:
        return False
    new.execute("SAVEPOINT one")
    try:
        new.execute(f"INSERT INTO message VALUES({','.join('?' * len(message))})", message)
        for row in recipients:
            _insert(new, row, now)
    except (sqlite3.Error, ValueError, TypeError, AttributeError, OverflowError):
        new.execute("ROLLBACK TO one")
        new.execute("RELEASE one")
        return False
    new.execute("RELEASE one")
    return True


def _insert(new: sqlite3.Connection, row: tuple[object, ...], now: int) -> None:
    text = f"INSERT INTO recipient VALUES({','.join('?' * len(row))})"
    try:
        new.execute(text, row)
    except (sqlite3.Error, UnicodeError):
        path = row[2]
        domain = octets_path(path).domain if isinstance(path, bytes) else ""
        new.execute(text, (*row[:8], domain, now, 1, 0, 0, 0, None))


def unfinished(directory: Path) -> set[int]:
    """Ids of all messages that the history saw come and did not see end. What it can't read it does not know."""
    waiting: dict[int, set[int]] = {}
    for path in sorted((directory / HISTORY).glob("????????-???.db")):
        with contextlib.suppress(sqlite3.Error, OSError, ValueError), contextlib.closing(open_read_only(path)) as day:
            for queue_id, data in day.execute("SELECT queue_id, data FROM event ORDER BY n"):
                _note(waiting, queue_id, decode_event(data))
    return set(waiting)


def _note(waiting: dict[int, set[int]], queue_id: int, event: HistoryEvent) -> None:
    if isinstance(event, Accepted):
        waiting[queue_id] = set(range(len(event.recipients)))
    elif isinstance(event, Withdrawn):
        waiting.pop(queue_id, None)
    elif queue_id in waiting:
        if isinstance(event, Attempted):
            if event.next_at == 0:
                waiting[queue_id].discard(event.recipient)
        elif event.verb == "delete":
            waiting[queue_id] -= set(event.recipients)
        if not waiting[queue_id]:
            del waiting[queue_id]
