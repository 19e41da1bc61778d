"""The queue as its operator sees it, read from the shards' files: server running or not, nothing written, nothing held up."""

import enum
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from posthouse.mail.envelope import Envelope, shard_of
from posthouse.mail.message import Message
from posthouse.spool import reader
from posthouse.spool.content import DIRECTORY_NAME as CONTENT
from posthouse.spool.content import SharedFiles
from posthouse.spool.read_only import open_read_only
from posthouse.spool.recall import Refusals, Usage, events_of, last_ids, refusals, usage
from posthouse.spool.record import Attempted, decode_attempted, octets_path, path_text
from posthouse.spool.schema import DATABASE_NAME, HELD, SETTLED
from posthouse.spool.shard import shard_directories

__all__ = [
    "Entry",
    "EntryRecipient",
    "Filter",
    "Refusals",
    "State",
    "Usage",
    "Volume",
    "events_of",
    "find",
    "last_ids",
    "list_entries",
    "load",
    "matching_ids",
    "refusals",
    "usage",
    "volumes",
]

_TICK_BITS = 20
_LOOK_AT = 5000


class State(enum.StrEnum):
    """A recipient's state for people."""

    QUEUED = "queued"
    """Not tried yet, or being tried for the first time."""
    DEFERRED = "deferred"
    """Put off by an attempt, or by what is known of its next hop."""
    HELD = "held"
    BOUNCING = "bouncing"
    """To be returned to its sender as soon as a server runs."""
    SETTLED = "settled"


class Filter(msgspec.Struct, frozen=True):
    """Which messages: all conditions together; the default is all.

    `destination` is a domain or a next hop's URL. `reverse_path` is a glob ("*@example.org") or, without wildcards, a part
    of the address, in any case; "<>" is the null path. `since` and `until` bound the arrival (milliseconds since 1970).
    """

    destination: str = ""
    reverse_path: str = ""
    since: int = 0
    until: int = 1 << 42
    state: State | None = None


class EntryRecipient(msgspec.Struct, frozen=True):
    """One recipient of a queued message."""

    index: int
    forward_path: str
    destination: str
    state: State
    attempts: int
    next_at: int
    grant: str
    words: str
    last: Attempted | None


class Entry(msgspec.Struct, frozen=True):
    """One queued message. Times are milliseconds since 1970."""

    queue_id: int
    arrived_at: int
    size_bytes: int
    reverse_path: str
    recipients: tuple[EntryRecipient, ...]


class Volume(msgspec.Struct, frozen=True):
    """What waits for one destination."""

    destination: str
    recipients: int
    held: int
    deferred: int
    oldest_at: int
    next_at: int


_STATES = {
    State.QUEUED: "r.state=1 AND r.last IS NULL AND r.bounce=0",
    State.DEFERRED: "r.state=1 AND r.last IS NOT NULL AND r.bounce=0",
    State.HELD: "r.state=2",
    State.BOUNCING: "r.state=1 AND r.bounce=1",
}
_ENTRY = "SELECT arrived, size, reverse_path FROM message WHERE id=?"
_ENTRY_RECIPIENTS = """SELECT n, forward_path, destination, state, attempts, next_at, bounce, grant_kind, grant_reason, last
FROM recipient WHERE message=? ORDER BY n"""
_VOLUMES = """SELECT destination, count(*), sum(state=2), sum(state=1 AND last IS NOT NULL), min(message), min(next_at)
FROM recipient WHERE state<>3 GROUP BY destination"""


def list_entries(data_dir: Path, which: Filter, limit: int, after: int = 0) -> list[Entry]:
    """Up to `limit` queued messages beyond queue id `after`, oldest first, settled recipients left out. Unreadable."""
    found: list[Entry] = []
    for queue_id in sorted(matching_ids(data_dir, which, limit, after))[:limit]:
        entry = find(data_dir, queue_id)
        if entry is not None:
            waiting = tuple(r for r in entry.recipients if r.state is not State.SETTLED)
            if waiting:
                found.append(msgspec.structs.replace(entry, recipients=waiting))
    return found


def matching_ids(data_dir: Path, which: Filter, limit: int, after: int = 0) -> list[int]:
    """The ids of up to `limit` messages of each shard beyond `after`, oldest first within a shard."""
    found: list[int] = []
    for _, directory in shard_directories(data_dir):
        for connection in _open(directory):
            found += _matching(connection, which, limit, after)
    return found


def _matching(connection: sqlite3.Connection, which: Filter, limit: int, after: int) -> list[int]:
    """Walks the recipients by key in short steps, so that no snapshot makes the log grow. An id holds its arrival."""
    lowest = max(after, (which.since << _TICK_BITS) - 1)
    highest = min(which.until << _TICK_BITS, (1 << 63) - 1)
    join = "JOIN message m ON m.id = r.message" if which.reverse_path else ""
    where = ["r.message > :after", "r.message < :highest", _STATES[which.state] if which.state else "r.state<>3"]
    if which.destination:
        where.append("r.destination = :destination")
    if which.reverse_path:
        where.append(_reverse_path_condition(which.reverse_path))
    # The conditions are constants of this module, their values parameters.
    text = f"""SELECT DISTINCT r.message FROM recipient r {join}
        WHERE {" AND ".join(where)} AND r.message <= :step ORDER BY r.message LIMIT :limit"""  # noqa: S608
    found: list[int] = []
    while len(found) < limit:
        step = connection.execute(
            "SELECT max(message) FROM (SELECT message FROM recipient WHERE message > ? ORDER BY message LIMIT ?)",
            (lowest, _LOOK_AT),
        ).fetchone()[0]
        if step is None or lowest >= highest:
            break
        values = {
            "after": lowest,
            "highest": highest,
            "destination": which.destination,
            "reverse_path": _glob(which.reverse_path),
            "step": step,
            "limit": limit - len(found),
        }
        found += [row[0] for row in connection.execute(text, values)]
        lowest = step
    return found


def _reverse_path_condition(wanted: str) -> str:
    if wanted in {"<>", ""}:
        return "m.reverse_path = x''"
    return "lower(CAST(m.reverse_path AS TEXT)) GLOB :reverse_path"


def _glob(wanted: str) -> str:
    wanted = wanted.strip("<>").lower()
    return wanted if any(c in wanted for c in "*?[") else f"*{wanted}*"


def find(data_dir: Path, queue_id: int) -> Entry | None:
    """One queued message with all its recipients, settled ones too; None when it isn't in the queue. Unreadable."""
    for connection in _open(_directory(data_dir, queue_id)):
        row = connection.execute(_ENTRY, (queue_id,)).fetchone()
        if row is not None:
            arrived, size, reverse_path = row
            recipients = tuple(_recipient(r) for r in connection.execute(_ENTRY_RECIPIENTS, (queue_id,)))
            return Entry(queue_id, arrived, size, path_text(octets_path(reverse_path)), recipients)
    return None


def _recipient(row: tuple[int, bytes, str, int, int, int, int, str, str, str | None]) -> EntryRecipient:
    n, path, destination, state, attempts, next_at, bounce, kind, words, last = row
    shown = State.QUEUED if last is None else State.DEFERRED
    if state == SETTLED:
        shown = State.SETTLED
    elif state == HELD:
        shown = State.HELD
    elif bounce:
        shown = State.BOUNCING
    return EntryRecipient(
        n,
        path_text(octets_path(path)),
        destination,
        shown,
        attempts,
        next_at,
        kind,
        words,
        decode_attempted(last) if last is not None else None,
    )


def load(data_dir: Path, queue_id: int) -> tuple[Envelope, Message]:
    """A queued message as the relay would load it. KeyError, ContentMissing, Unreadable."""
    directory = _directory(data_dir, queue_id)
    for connection in _open(directory):
        return reader.load(connection, SharedFiles(directory / CONTENT), queue_id)
    raise KeyError(queue_id)


def volumes(data_dir: Path) -> list[Volume]:
    """What waits, by destination over all shards, the most first."""
    sums: dict[str, list[int]] = {}
    for _, directory in shard_directories(data_dir):
        for connection in _open(directory):
            for destination, count, held, deferred, oldest, next_at in connection.execute(_VOLUMES):
                found = sums.setdefault(destination, [0, 0, 0, oldest, next_at])
                for n, more in enumerate((count, held, deferred)):
                    found[n] += more
                found[3], found[4] = min(found[3], oldest), min(found[4], next_at)
    listed = [Volume(name, f[0], f[1], f[2], f[3] >> _TICK_BITS, f[4]) for name, f in sums.items()]
    return sorted(listed, key=lambda volume: (-volume.recipients, volume.destination))


def _directory(data_dir: Path, queue_id: int) -> Path:
    return data_dir / "spool" / str(shard_of(queue_id))


def _open(directory: Path) -> Iterator[sqlite3.Connection]:
    """The shard's database if there is one, for one short look."""
    try:
        connection = open_read_only(directory / DATABASE_NAME)
    except FileNotFoundError:
        return
    try:
        yield connection
    finally:
        connection.close()
