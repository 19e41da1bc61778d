"""What a test tells while it runs, for those who watch."""

import enum

import msgspec

from posthouse.tester.report import CaseResult


class EventKind(enum.StrEnum):
    """What happened."""

    SESSION_OPENED = "session-opened"
    SESSION_CLOSED = "session-closed"
    LINE = "line"
    """A line of a dialogue; `line` begins with seconds, then `->` ours, `<-` theirs, `--` what happened between."""
    JUDGED = "judged"
    """A case has a verdict; one that was accepted may get another when the collector has been asked."""
    WAITING = "waiting"
    """Nothing can be said for `seconds`; `line` says why."""
    DONE = "done"


class ProbeEvent(msgspec.Struct, frozen=True):
    """One event. `at` in seconds since the test began; `session` is -1 where none is concerned; `done` of `cases` have a
    verdict."""

    kind: EventKind
    at: float
    session: int = -1
    line: str = ""
    result: CaseResult | None = None
    seconds: float = 0.0
    done: int = 0
    cases: int = 0


def ignore(_event: ProbeEvent) -> None:
    """Nobody watches."""
