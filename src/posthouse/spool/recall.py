"""Reading the history: what happened to a message, and who used the relay. Server running or not."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from posthouse.mail.envelope import arrival_of
from posthouse.spool.history import DAY_MS, DIRECTORY_NAME, day_of
from posthouse.spool.read_only import open_read_only
from posthouse.spool.record import HistoryEvent, decode_event
from posthouse.spool.shard import shard_directories


class Usage(msgspec.Struct, frozen=True):
    """What one client, under one login, used by one kind of grant in a period."""

    client: str
    login: str
    grant: str
    messages: int
    recipients: int
    size_bytes: int


class Refusals(msgspec.Struct, frozen=True):
    """How often one client, under one login, was refused for one reason in a period."""

    client: str
    login: str
    slug: str
    times: int


def events_of(shard_directory: Path, queue_id: int) -> list[HistoryEvent]:
    """All that is remembered of a message, oldest first; empty when nothing is. Unreadable."""
    found: list[tuple[int, str]] = []
    for connection in _open_days(shard_directory, queue_id >> 20, None):
        found += connection.execute("SELECT n, data FROM event WHERE queue_id=?", (queue_id,)).fetchall()
    return [decode_event(text) for _, text in sorted(found)]


def last_ids(data_dir: Path, limit: int) -> list[tuple[Path, int]]:
    """The shard's directory and the id of the `limit` messages that were accepted last, newest first. Unreadable."""
    found: list[tuple[int, Path]] = []
    for _, directory in shard_directories(data_dir):
        found += [(queue_id, directory) for queue_id in _last_ids_of(directory, limit)]
    return [(directory, queue_id) for queue_id, directory in sorted(found, reverse=True)[:limit]]


def _last_ids_of(shard_directory: Path, limit: int) -> list[int]:
    """From the newest day back, until no older day can hold a newer message; a day also has the attempts for older ones."""
    found: set[int] = set()
    for path in sorted((shard_directory / DIRECTORY_NAME).glob("????????-???.db"), reverse=True):
        for connection in _opened(path):
            queue_id = 1 << 62
            for _ in range(limit):  # by key, one look each: a message may have thousands of events
                row = connection.execute("SELECT max(queue_id) FROM event WHERE queue_id < ?", (queue_id,)).fetchone()
                if row[0] is None:
                    break
                queue_id = row[0]
                found.add(queue_id)
        newest = sorted(found, reverse=True)[:limit]
        if len(newest) == limit and day_of(arrival_of(newest[-1])) >= path.name[:8]:
            return newest
    return sorted(found, reverse=True)[:limit]


def usage(data_dir: Path, since: int, until: int) -> list[Usage]:
    """Who used the relay from `since` until before `until` (milliseconds since 1970, counted by whole hours); most first."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    for _, directory in shard_directories(data_dir):
        for connection in _open_days(directory, since, until):
            rows = connection.execute(
                "SELECT client, login, grant_kind, messages, recipients, octets FROM usage WHERE hour>=? AND hour<?",
                (since - since % 3_600_000, until),
            )
            for client, login, grant, *counts in rows:
                found = sums.setdefault((client, login, grant), [0, 0, 0])
                for n, count in enumerate(counts):
                    found[n] += count
    listed = [Usage(*key, *counts) for key, counts in sums.items()]
    return sorted(listed, key=lambda row: (-row.recipients, row.client, row.login, row.grant))


def refusals(data_dir: Path, since: int, until: int) -> list[Refusals]:
    """Who was refused, as `usage`; most first."""
    sums: dict[tuple[str, str, str], int] = {}
    for _, directory in shard_directories(data_dir):
        for connection in _open_days(directory, since, until):
            rows = connection.execute(
                "SELECT client, login, slug, times FROM refusal WHERE hour>=? AND hour<?",
                (since - since % 3_600_000, until),
            )
            for client, login, slug, times in rows:
                sums[client, login, slug] = sums.get((client, login, slug), 0) + times
    listed = [Refusals(*key, times) for key, times in sums.items()]
    return sorted(listed, key=lambda row: (-row.times, row.client, row.login, row.slug))


def _open_days(shard_directory: Path, since: int, until: int | None) -> Iterator[sqlite3.Connection]:
    """Read-only connections to the days between two times (ms), one after the other. A day may vanish meanwhile."""
    first = day_of(max(since - DAY_MS, 0))
    last = day_of(until + DAY_MS) if until is not None else "99999999"
    for path in sorted((shard_directory / DIRECTORY_NAME).glob("????????-???.db")):
        if not first <= path.name[:8] <= last:
            continue
        yield from _opened(path)


def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, for one short look; nothing when it has vanished."""
    try:
        connection = open_read_only(path)
    except FileNotFoundError:
        return
    try:
        yield connection
    finally:
        connection.close()
