"""What operators do to queued mail: one statement a verb, and an event for each message it changed."""

import sqlite3
from collections.abc import Iterator, Mapping

from posthouse.mail.envelope import first_id_at
from posthouse.mail.outcome import Failed
from posthouse.mail.reason import Reason, Slug
from posthouse.spool.api import Done, Fate, SpoolError, Verb
from posthouse.spool.record import Acted
from posthouse.spool.rows import id_list

# Which recipients a verb concerns, and what it sets: queued is 1, held 2 (schema.QUEUED and so on). `bounce` is undone by reroute: the
# operator has changed their mind.
_WHERE = {
    Verb.HOLD: "state=1 AND bounce=0",
    Verb.RELEASE: "state=2",
    Verb.RETRY: "state=1",
    Verb.REROUTE: "state<>3",
    Verb.BOUNCE: "state<>3 AND bounce=0",
    Verb.DELETE: "state<>3",
}
_SET = {
    Verb.HOLD: "state=2",
    Verb.RELEASE: "state=1, next_at=:now",
    Verb.RETRY: "next_at=:now",
    Verb.REROUTE: "destination=:argument, next_at=:now, bounce=0",
    Verb.BOUNCE: "state=1, bounce=1, next_at=:now",
}
_TARGETS = "message IN (SELECT value FROM json_each(:ids)) AND (:destination IS NULL OR destination=:destination)"

DELETED = Failed("5.7.1", Reason(Slug.DELETED_BY_OPERATOR, "An operator deleted it from the queue; nobody is told."))


class Act:
    """One verb on some messages, and what came of it."""

    __slots__ = ("argument", "at", "changed", "destination", "error", "ids", "verb")

    def __init__(self, verb: Verb, ids: tuple[int, ...], destination: str | None, argument: str, at: int) -> None:
        self.verb = verb
        self.ids = ids
        self.destination = destination
        self.argument = argument
        self.at = at
        self.changed: dict[int, list[int]] = {}
        """Message → the recipients that were concerned."""
        self.error: SpoolError | None = None

    def run(self, connection: sqlite3.Connection) -> list[Fate]:
        """Changes the rows; for a delete, returns the fates that do."""
        values = {
            "ids": id_list(self.ids),
            "destination": self.destination,
            "now": self.at,
            "argument": self.argument,
        }
        # The texts are constants of this module, never input.
        where = f"{_TARGETS} AND {_WHERE[self.verb]}"
        rows = connection.execute(f"SELECT message, n, attempts FROM recipient WHERE {where}", values).fetchall()  # noqa: S608
        for message, n, _ in rows:
            self.changed.setdefault(message, []).append(n)
        if self.verb is Verb.DELETE:
            return [Fate(message, n, DELETED, Done(), attempts, self.at) for message, n, attempts in rows]
        if rows:
            connection.execute(f"UPDATE recipient SET {_SET[self.verb]} WHERE {where}", values)  # noqa: S608
        return []

    def events(self) -> Iterator[tuple[int, Acted]]:
        """What the history shall say of each message."""
        for queue_id, recipients in self.changed.items():
            yield queue_id, Acted(self.at, self.verb.value, tuple(recipients), self.argument)


class Correction:
    """The stored times after the clock was set `by` so many milliseconds: see `api.Spool.correct_times`."""

    __slots__ = ("by", "error", "latest", "now")

    changed: Mapping[int, list[int]] = {}

    def __init__(self, by: int, now: int, latest: int) -> None:
        self.by = by
        self.now = now
        self.latest = latest
        self.error: SpoolError | None = None

    def run(self, connection: sqlite3.Connection) -> list[Fate]:
        """Changes the rows. Without a jump only those are looked at that may lie in the future."""
        values = {"by": self.by, "now": self.now, "latest": self.latest, "first": first_id_at(self.now)}
        if self.by:
            connection.execute("UPDATE message SET arrived=max(0, min(arrived + :by, :now))", values)
            connection.execute("UPDATE recipient SET next_at=max(0, min(next_at + :by, :latest))", values)
        else:
            connection.execute("UPDATE message SET arrived=:now WHERE id >= :first AND arrived > :now", values)
            connection.execute("UPDATE recipient SET next_at=:now WHERE state=1 AND next_at > :latest", values)
        return []

    def events(self) -> Iterator[tuple[int, Acted]]:
        """Nothing happened to any message."""
        return iter(())
