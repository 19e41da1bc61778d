"""The report of one test: everything that the verdict rests on. Its JSON form is published (docs/test-report.schema.json)."""

import enum
from collections.abc import Sequence

import msgspec

from posthouse.tester.verdict import CaseVerdict, HostVerdict, Stage

FORMAT = 1
"""Goes up when a field changes its meaning or goes; fields may be added at any time."""


class Target(msgspec.Struct, frozen=True):
    """One host and port to test. `name` is what the user called it, or the address again; `domain` is a domain that it takes
    mail for, "" to guess it from the name."""

    address: str
    port: int = 25
    name: str = ""
    domain: str = ""

    def __str__(self) -> str:
        where = f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"
        return f"{self.name} ({where})" if self.name and self.name != self.address else where


class CaseResult(msgspec.Struct, frozen=True):
    """What became of one case. `reply` is the deciding one as it came ("550 5.7.1 Relaying denied"), "" when there was none.

    `said` are the two commands, with what can't be printed escaped; `words` say why, where that isn't plain from the reply.
    `session` is an index into the report's transcripts, -1 when it was not said; `seconds` how long it took, `attempts` how
    often it was said (more than once: greylisted).
    """

    number: int
    name: str
    verdict: CaseVerdict
    stage: Stage = Stage.CONNECT
    reply: str = ""
    words: str = ""
    session: int = -1
    seconds: float = 0.0
    attempts: int = 0
    said: tuple[str, ...] = ()


class TlsNoted(msgspec.Struct, frozen=True):
    """What TLS the host speaks. `state` is "offered", "not-offered", "failed" or "implicit"; the certificate is told as it is,
    and proves nothing here."""

    state: str
    version: str = ""
    cipher: str = ""
    subject: str = ""
    issuer: str = ""
    names: tuple[str, ...] = ()
    not_after: str = ""
    is_self_signed: bool = False
    words: str = ""


class SessionTranscript(msgspec.Struct, frozen=True):
    """One connection. `lines` begin with seconds since the test began, then `->` ours, `<-` theirs, `--` what happened."""

    session: int
    started_at: float
    lines: tuple[str, ...]


class Hop(msgspec.Struct, frozen=True):
    """One Received field that a probe gathered, oldest first; `field` as it came."""

    field: str


class Path(msgspec.Struct, frozen=True):
    """The way a relayed probe took. `input_host` took it from the tester, `output_host` brought it to the collector (its
    address and what it called itself); they differ where a relay hands on to another (multi-hop)."""

    case_number: int
    input_host: str
    output_host: str
    output_hello_name: str
    is_multi_hop: bool
    arrived_at: float
    hops: tuple[Hop, ...] = ()


class Remedy(msgspec.Struct, frozen=True):
    """The one thing to do first: a sentence, the lines to put into the server's configuration, and where that is documented."""

    software: str
    sentence: str
    lines: tuple[str, ...] = ()
    see: str = ""


class Reach(enum.StrEnum):
    """Whether the host was reached at all."""

    TALKED = "talked"
    NOBODY_LISTENS = "nobody-listens"
    """The connection was refused: there is no server on that port, so nobody can relay there."""
    NO_WAY = "no-way"
    """This machine has no way there: no IPv6, say, or no such source address."""
    NOT_REACHED = "not-reached"
    """No connection, or not a word on it."""


class Report(msgspec.Struct, frozen=True):
    """One test of one host and port. Times in seconds since 1970 where named `_at`."""

    target: str
    address: str
    port: int
    verdict: HostVerdict
    words: str
    results: tuple[CaseResult, ...]
    started_at: float
    seconds: float
    reach: Reach = Reach.TALKED
    test_id: int = 0
    hello_name: str = ""
    banner: str = ""
    software: str = ""
    offers: tuple[str, ...] = ()
    tls: TlsNoted = TlsNoted("unknown")
    is_collector_used: bool = False
    paths: tuple[Path, ...] = ()
    doubts: tuple[str, ...] = ()
    remedy: Remedy | None = None
    transcripts: tuple[SessionTranscript, ...] = ()
    format: int = FORMAT

    @property
    def count(self) -> dict[CaseVerdict, int]:
        """How many cases had which verdict; verdicts that none had are left out."""
        found = [result.verdict for result in self.results]
        return {verdict: found.count(verdict) for verdict in CaseVerdict if verdict in found}


class Denied(msgspec.Struct, frozen=True):
    """A place that was not tested; `words` say why and what to do."""

    place: str
    words: str


class Document(msgspec.Struct, frozen=True):
    """What `posthouse test --json` prints: the reports of all places of one host. `changes` are those since the last results
    that were kept, with `--diff`."""

    host: str
    verdict: HostVerdict
    words: str
    reports: tuple[Report, ...]
    denied: tuple[Denied, ...] = ()
    changes: tuple[str, ...] = ()
    format: int = FORMAT


def judge_places(reports: Sequence[Report]) -> HostVerdict:
    """The verdict on a host of several addresses or ports. A port on which nobody listens relays nothing, and says nothing;
    an address to which this machine has no way is told, and can't be judged from here."""
    talked = [one.verdict for one in reports if one.reach not in (Reach.NOBODY_LISTENS, Reach.NO_WAY)]
    if HostVerdict.OPEN in talked:
        return HostVerdict.OPEN
    return HostVerdict.CLOSED if talked and set(talked) == {HostVerdict.CLOSED} else HostVerdict.UNKNOWN


def to_json(report: Report) -> bytes:
    """The published form."""
    return msgspec.json.encode(report)


def from_json(octets: bytes) -> Report:
    """A report that `to_json` wrote; fields of a later format are passed over. msgspec.DecodeError."""
    return msgspec.json.decode(octets, type=Report)
