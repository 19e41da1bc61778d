"""Is the queue what it should be? Everything is read and held against its checksums; nothing is written. Server running or not."""

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from posthouse.mail.envelope import arrival_of, queue_id_text
from posthouse.spool import reader, salvage
from posthouse.spool.api import ContentMissing
from posthouse.spool.clock import wall_clock
from posthouse.spool.content import DIRECTORY_NAME as CONTENT
from posthouse.spool.content import SharedFiles
from posthouse.spool.read_only import Unreadable, open_read_only
from posthouse.spool.record import decode_attempted
from posthouse.spool.schema import DATABASE_NAME, HELD, QUEUED, SETTLED
from posthouse.spool.shard import shard_directories

_PAGE = 500
_MOST_FAULTS = 20  # of one database that SQLite names
_SETTLING_MS = 10_000
_CHUNK = 1024 * 1024


class Damage(msgspec.Struct, frozen=True):
    """One thing that is not as it should be. `queue_id` is 0 when it is about no single message."""

    shard: int
    queue_id: int
    words: str


class Verified(msgspec.Struct):
    """What was looked at, and what was found."""

    messages: int = 0
    size_bytes: int = 0
    damages: list[Damage] = []


def verify(data_dir: Path, progress: Callable[[int], None] = lambda _: None) -> Verified:
    """Looks at every shard below a data directory; `progress` hears how many messages have been read. PermissionError."""
    found = Verified()
    for shard, directory in shard_directories(data_dir):
        _Shard(shard, directory, found, progress).verify()
    return found


class _Shard:
    def __init__(self, shard: int, directory: Path, found: Verified, progress: Callable[[int], None]) -> None:
        self._shard = shard
        self._directory = directory
        self._files = SharedFiles(directory / CONTENT)
        self._found = found
        self._progress = progress
        self._ids: set[int] = set()

    def verify(self) -> None:
        known = salvage.unfinished(self._directory)
        self._tell_of_salvages()
        path = self._directory / DATABASE_NAME
        try:
            connection = open_read_only(path)
        except FileNotFoundError:
            if known:
                self._add(0, f"{path} is missing")
        except Unreadable as error:
            self._add(0, str(error))
        else:
            with contextlib.closing(connection):
                self._look_at_database(connection)
                self._look_at_messages(connection)
                self._look_for_missing(connection, known)

    def _add(self, queue_id: int, words: str) -> None:
        self._found.damages.append(Damage(self._shard, queue_id, words))

    def _tell_of_salvages(self) -> None:
        for path, report in salvage.reports(self._directory):
            self._add(
                0,
                f"the database was damaged and {report.rescued} messages were saved from it; once nothing is missed, "
                f"remove {path} and the database beside it",
            )
            for queue_id in report.lost:
                self._add(queue_id, "it could not be saved from the damaged database")

    def _look_at_database(self, connection: sqlite3.Connection) -> None:
        try:
            for (words,) in connection.execute(f"PRAGMA integrity_check({_MOST_FAULTS})"):
                if words != "ok":
                    self._add(0, f"the database is damaged: {words}")
        except sqlite3.Error as error:
            self._add(0, f"the database is damaged: {error}")

    def _look_at_messages(self, connection: sqlite3.Connection) -> None:
        for queue_id in self._walk(connection):
            self._ids.add(queue_id)
            self._found.messages += 1
            try:
                words = self._fault_of(connection, queue_id)
            except (ContentMissing, OSError) as error:
                words = str(error)
            except (sqlite3.Error, ValueError, TypeError, AttributeError) as error:
                words = f"it can't be read: {error}"
            except KeyError:
                continue  # it has left the queue meanwhile
            if words and _is_there(connection, queue_id, otherwise=True):
                self._add(queue_id, words)
            if self._found.messages % _PAGE == 0:
                self._progress(self._found.messages)

    def _walk(self, connection: sqlite3.Connection) -> Iterator[int]:
        """By key in short reads, so that a running server's log does not grow."""
        last = 0
        while True:
            try:
                ids = connection.execute(
                    "SELECT id FROM message WHERE id>? ORDER BY id LIMIT ?", (last, _PAGE)
                ).fetchall()
            except sqlite3.Error as error:
                self._add(0, f"the database can't be read beyond {queue_id_text(last)}: {error}")
                return
            if not ids or ids[-1][0] <= last:
                return
            last = ids[-1][0]
            yield from (queue_id for (queue_id,) in ids)

    def _fault_of(self, connection: sqlite3.Connection, queue_id: int) -> str:
        _, message = reader.load(connection, self._files, queue_id)
        self._found.size_bytes += message.size_bytes
        file = message.content.file
        if file is not None and _checksum(Path(file.path)) != file.checksum:
            return f"{file.path} is damaged"
        rows = connection.execute("SELECT state, next_at, last FROM recipient WHERE message=?", (queue_id,)).fetchall()
        return _fault_of_rows(rows, wall_clock())

    def _look_for_missing(self, connection: sqlite3.Connection, known: set[int]) -> None:
        """What the history saw come and not go must be there; what came just now may be on its way."""
        missing = {i for i in known - self._ids if arrival_of(i) < wall_clock() - _SETTLING_MS}
        missing -= {damage.queue_id for damage in self._found.damages}
        if missing:
            missing &= salvage.unfinished(self._directory)
        for queue_id in sorted(missing):
            if not _is_there(connection, queue_id, otherwise=False):
                self._add(queue_id, "it was accepted, its end is not on record, and it is not in the queue")


def _is_there(connection: sqlite3.Connection, queue_id: int, *, otherwise: bool) -> bool:
    """The message has a row; `otherwise` when the database can't say."""
    try:
        return connection.execute("SELECT 1 FROM message WHERE id=?", (queue_id,)).fetchone() is not None
    except sqlite3.Error:
        return otherwise


def _fault_of_rows(rows: list[tuple[int, int, str | None]], now: int) -> str:
    """What no server leaves in the recipients' rows; "" when all is well."""
    if not rows:
        return "it has no recipients"
    if all(state == SETTLED for state, _, _ in rows):
        return "all its recipients are settled, and it is still there"
    for state, next_at, last in rows:
        attempt = decode_attempted(last) if last is not None else None
        if state not in {QUEUED, HELD, SETTLED}:
            return f"a recipient is in a state that does not exist ({state})"
        if state == SETTLED and (attempt is None or attempt.next_at != 0):
            return "a recipient counts as settled whose last attempt was not the last"
        if next_at > now + 400 * 86_400_000:
            return f"a recipient waits until {time.strftime('%Y-%m-%d', time.gmtime(min(next_at // 1000, 1 << 37)))}"
    return ""


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found = zlib.crc32(chunk, found)
    return found
