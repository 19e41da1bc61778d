"""Looking at a database that a server may be writing, or that nobody has open, without making a file or holding it up."""

import sqlite3
from pathlib import Path

from posthouse.spool.api import SpoolError


class Unreadable(SpoolError):
    """A file of the queue can't be read by this user, or is damaged; the text is one sentence."""


def tolerate_bad_text(connection: sqlite3.Connection) -> None:
    """A text that is no UTF-8 can only be damage: it shall spoil its own message, not every look at the table it is in."""
    connection.text_factory = lambda octets: octets.decode("utf-8", "replace")


def open_read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot write. FileNotFoundError when there is no such database, PermissionError, Unreadable.

    With a log beside it (a server runs, or died) SQLite reads both. Without one the file alone is the whole, and is read as
    it lies: opening it the other way would make a log and a shared-memory file that could belong to the wrong user.
    """
    path.stat()  # FileNotFoundError, or PermissionError, which `exists` would take for absence from Python 3.12 on
    has_log = path.with_name(f"{path.name}-wal").exists()
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro{'' if has_log else '&immutable=1'}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5.0)
        tolerate_bad_text(connection)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the words of a damaged schema may be no text
        raise Unreadable(f"{path} can't be read ({error}); are you its owner or root?") from error
    return connection
