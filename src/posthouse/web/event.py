"""What happens in a test, one event after the other: to a page by SSE, to a terminal as lines of text, to programs as JSON."""

import enum

import msgspec

from posthouse.tester.report import CaseResult
from posthouse.tester.verdict import CASE_WORDS, CaseVerdict, HostVerdict
from posthouse.web.document import Place, RelayTest


class EventKind(enum.StrEnum):
    """`event:` of the stream."""

    QUEUED = "queued"
    STARTED = "started"
    PORT = "port"
    """A port answers, or does not: `port`, `words`."""
    LINE = "line"
    """A line of a dialogue: `port`, `session`, `seconds` since the port's test began, `who` says it, `text`."""
    CASE = "case"
    """A case has its verdict: `port`, `case`. It may come again with a better one, when the collector has waited."""
    NOTE = "note"
    """Something to know: `words`."""
    DONE = "done"
    """The verdict: `verdict`, `words`. The last event."""
    FAILED = "failed"
    """The test could not be carried out: `words`. The last event."""


class Who(enum.StrEnum):
    """Whose line it is."""

    TESTER = "tester"
    HOST = "host"
    NOBODY = "nobody"
    """A remark about the connection."""


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One event; `number` counts from 1 and is the stream's `id:`. Which fields mean something is said at its kind."""

    number: int
    kind: EventKind
    port: int = 0
    session: int = 0
    seconds: float = 0.0
    who: Who = Who.NOBODY
    text: str = ""
    words: str = ""
    case: CaseResult | None = None
    place: Place | None = None
    verdict: HostVerdict | None = None

    @property
    def is_last(self) -> bool:
        """Nothing follows."""
        return self.kind in (EventKind.DONE, EventKind.FAILED)


def printable(text: str) -> str:
    """A host's words with whatever is not plainly printable escaped: they must not move a visitor's cursor or forge a line."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


_MARK = {Who.TESTER: ">", Who.HOST: "<", Who.NOBODY: "-"}


def as_text(event: Event) -> str:
    """The lines a terminal shows, each with its end; "" for what needs none."""
    match event.kind:
        case EventKind.QUEUED:
            return f"waiting: number {event.place.place} of {event.place.waiting} in the queue\n" if event.place else ""
        case EventKind.STARTED:
            return f"{printable(event.words)}\n"
        case EventKind.PORT:
            return f"\nport {event.port}: {printable(event.words)}\n"
        case EventKind.LINE:
            return f"{event.seconds:7.2f} {event.session:3d} {_MARK[event.who]} {printable(event.text)}\n"
        case EventKind.CASE:
            return _case_text(event.case) if event.case else ""
        case EventKind.NOTE:
            return f"  {printable(event.words)}\n"
        case EventKind.DONE:
            return f"\nverdict: {event.verdict}: {printable(event.words)}\n"
    return f"\nno test: {printable(event.words)}\n"


def _case_text(result: CaseResult) -> str:
    stands_out = "!!" if result.verdict in (CaseVerdict.RELAYED, CaseVerdict.ACCEPTED) else "=="
    why = result.reply or result.words
    said = f": {printable(why)}" if why else ""
    return f"{stands_out} {result.number} {result.name}: {CASE_WORDS[result.verdict]}{said}\n"


def as_sse(event: Event) -> bytes:
    """The event in the text/event-stream format."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.kind.encode(), msgspec.json.encode(event))


def events_of(document: RelayTest) -> tuple[Event, ...]:
    """What is told again of a test that is over and no longer in memory: ports, cases and verdict, without the dialogue."""
    found: list[Event] = []

    def tell(kind: EventKind, **fields: object) -> None:
        found.append(msgspec.convert({"number": len(found) + 1, "kind": kind, **fields}, Event))

    for port in document.ports:
        tell(EventKind.PORT, port=port.port, words=port.words)
    for report in document.reports:
        for result in report.results:
            tell(EventKind.CASE, port=report.port, case=result)
    if document.verdict is None:
        tell(EventKind.FAILED, words=document.words)
    else:
        tell(EventKind.DONE, verdict=document.verdict, words=document.words)
    return tuple(found)


def as_advice(document: RelayTest, base: str = "") -> str:
    """What a terminal shows at the end, behind the verdict: the remedy, the doubts, where the result is kept."""
    lines: list[str] = []
    if document.remedy is not None:
        lines += [f"fix first: {printable(document.remedy.sentence)}"]
        lines += [f"    {printable(line)}" for line in document.remedy.lines]
        lines += [f"    see {printable(document.remedy.see)}"] if document.remedy.see else []
    lines += [f"mind: {printable(doubt)}" for doubt in document.doubts]
    lines.append(f"kept for a while: {base}{document.links.page}")
    return "\n".join(lines) + "\n"
