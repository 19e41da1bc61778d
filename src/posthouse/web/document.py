"""What the service says of a test, as programs read it. The schema in /openapi.json is made of these structs."""

import enum
from collections.abc import Iterable

import msgspec

from posthouse.tester.report import Remedy, Report
from posthouse.tester.verdict import HostVerdict


class State(enum.StrEnum):
    """Where a test stands. UNPROVED -> QUEUED -> RUNNING -> DONE; any before DONE may become FAILED."""

    UNPROVED = "unproved"
    """It waits for a proof that who asks controls the host."""
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    """It could not be carried out, and says nothing about the host; `words` say why."""

    @property
    def is_over(self) -> bool:
        """Nothing more will happen."""
        return self in (State.DONE, State.FAILED)


class Place(msgspec.Struct, frozen=True):
    """Where a test stands in the queue: `place` counts from 1, `waiting` are all that wait, `running` those under way."""

    place: int
    waiting: int
    running: int


class PortState(msgspec.Struct, frozen=True):
    """A port of the host: whether something answers there, and in words what stood in the way."""

    port: int
    is_open: bool
    words: str = ""


class Way(msgspec.Struct, frozen=True):
    """One way to show control of a host: `way` for programs, `title` and `words` for people, `where` and `what` to put there."""

    way: str
    title: str
    words: str
    where: str = ""
    what: str = ""


class Proof(msgspec.Struct, frozen=True):
    """What to do, one of `ways`, until `expires_at` (seconds since 1970). `fault` says why the last look did not find it."""

    ways: tuple[Way, ...]
    expires_at: float
    fault: str = ""


class Links(msgspec.Struct, frozen=True):
    """Where this test is found: its page, its document, its events."""

    page: str
    document: str
    events: str


class RelayTest(msgspec.Struct, frozen=True):
    """One test. Times are seconds since 1970, 0 for what has not happened; `verdict` is null until it is done.

    `reports` has one a port that answers, each as `posthouse test --json` prints it. `expires_at`: forgotten then.
    """

    id: str
    state: State
    host: str
    address: str
    ports: tuple[PortState, ...]
    verdict: HostVerdict | None
    words: str
    by_calling: bool
    created_at: float
    links: Links
    started_at: float = 0.0
    ended_at: float = 0.0
    expires_at: float = 0.0
    queue: Place | None = None
    proof: Proof | None = None
    remedy: Remedy | None = None
    doubts: tuple[str, ...] = ()
    reports: tuple[Report, ...] = ()


def links_of(test_id: str) -> Links:
    """The links of a test, as paths on this service."""
    return Links(f"/tests/{test_id}", f"/api/tests/{test_id}", f"/api/tests/{test_id}/events")


def judge(reports: Iterable[Report], ports: Iterable[PortState] = ()) -> tuple[HostVerdict, str, Remedy | None]:
    """One verdict for the host, its words and the first remedy: open if a port is, closed only if all that answer are."""
    found = tuple(reports)
    untested = [port for port in ports if port.is_open and port.port not in {report.port for report in found}]
    for report in found:
        if report.verdict is HostVerdict.OPEN:
            return HostVerdict.OPEN, _on_port(report), report.remedy
    for report in found:
        if report.verdict is HostVerdict.UNKNOWN:
            return HostVerdict.UNKNOWN, _on_port(report), report.remedy
    if untested:
        return HostVerdict.UNKNOWN, f"port {untested[0].port} {untested[0].words}", None
    if not found:
        return HostVerdict.UNKNOWN, "no port answers, so there is nothing to judge", None
    asked = ", ".join(str(report.port) for report in found)
    return HostVerdict.CLOSED, f"relays for no stranger; asked on port {asked}", None


def _on_port(report: Report) -> str:
    """The report's sentence without the verdict that it begins with: that stands in front already."""
    words = report.words.partition(": ")
    return f"on port {report.port}, {words[2] or words[0]}"
