"""The prober: says every case to one host and reports what came of it.

One session first, to see who is there; then several side by side, each ended before the host loses patience with it (`plan`,
`sessions`). What the collector has received decides, once all has been said. Nothing waits beyond the deadline, and
whatever the host does, a report comes of it.
"""

import asyncio
import collections
import socket
import time
from collections.abc import Callable, Sequence

import msgspec

from posthouse.net.tls import lenient_context
from posthouse.tester.case import CASES, Case
from posthouse.tester.collector import POLL_SECONDS, CollectorClient, CollectorFault, Receipt
from posthouse.tester.dialogue import Patience
from posthouse.tester.event import EventKind, ProbeEvent, ignore
from posthouse.tester.message import Tester
from posthouse.tester.naming import NamingSettings
from posthouse.tester.remedy import find_remedy, recognise_software
from posthouse.tester.report import CaseResult, Path, Reach, Report, Target
from posthouse.tester.sessions import Sessions, SessionSettings, Settled
from posthouse.tester.token import TokenKey, new_test_id
from posthouse.tester.trail import path_of
from posthouse.tester.verdict import (
    NO_COLLECTOR,
    CaseVerdict,
    Evidence,
    HostVerdict,
    Refusal,
    Stage,
    doubtful_mailboxes,
    judge_case,
    judge_host,
)

_OPEN = frozenset({CaseVerdict.RELAYED, CaseVerdict.ACCEPTED})
IMPLICIT_TLS_PORTS = frozenset({465})
NO_THIRD_PARTY = "relay-test@example.com"
"""Whom probes go to where no collector takes part: a domain that exists and takes no mail (RFC 2606, RFC 7505)."""

NOTICE_SECONDS = 8.0
"""How long the collector is asked when nothing but mail to the host's own mailboxes was accepted: a notice, a forwarder that
sends to whom the local part names, or a host behind this one that falls for a false end of data may still show."""

STRAGGLER_SECONDS = 5.0
"""How long further probes are waited for behind each that arrived: the host is proven open, the rest makes the table whole."""

EventSink = Callable[[ProbeEvent], None]


class ProberSettings(msgspec.Struct, frozen=True):
    """How to test. Seconds throughout.

    `tester` says who tests; its reverse-path is `tester_local` at `tester_domain` ("": the collector's domain, else the
    tester's name). `third_party` gets the probes where no collector takes part. `numbers` picks cases (empty: all). A session
    ends after `errors_borne` refusals, `at_once` sessions are open side by side. `delivery_seconds` is how long accepted
    probes are waited for. `dialogue_octets` of the dialogues are kept. `nonce` is that of a Posthouse under test, for the echo.
    """

    tester: Tester
    tester_local: str = "relay-test"
    tester_domain: str = ""
    third_party: str = NO_THIRD_PARTY
    source_address: str = ""
    deadline_seconds: float = 300.0
    delivery_seconds: float = 30.0
    patience: Patience = Patience()
    at_once: int = 4
    errors_borne: int = 8
    numbers: frozenset[int] = frozenset()
    nonce: str = ""
    dialogue_octets: int = 256 * 1024
    implicit_tls_ports: frozenset[int] = IMPLICIT_TLS_PORTS

    @property
    def cases(self) -> tuple[Case, ...]:
        """The cases to say."""
        return tuple(case for case in CASES if not self.numbers or case.number in self.numbers)


def own_name() -> str:
    """What this machine calls itself, fit for EHLO."""
    name = socket.getfqdn().strip(".").lower()
    return name if "." in name and not name.endswith(".arpa") else "localhost.localdomain"


async def probe(
    target: Target,
    settings: ProberSettings,
    *,
    tokens: TokenKey | None = None,
    collector: CollectorClient | None = None,
    on_event: EventSink = ignore,
) -> Report:
    """Tests one host. Always a report, within the deadline and the time that the collector is waited for.

    Whether the host may be tested is not asked here (`consent`). `tokens` and `collector` go together.
    """
    return await _Test(target, settings, tokens, collector, on_event).run()


class _Test:
    def __init__(
        self,
        target: Target,
        settings: ProberSettings,
        tokens: TokenKey | None,
        collector: CollectorClient | None,
        on_event: EventSink,
    ) -> None:
        self._target = target
        self._settings = settings
        self._collector = collector
        self._on_event = on_event
        self._cases = settings.cases
        self._test_id = new_test_id()
        self._settled: dict[int, Settled] = {}
        self._results: dict[int, CaseResult] = {}
        self._receipts: tuple[Receipt, ...] = ()
        self._collector_words = ""
        self._started_at = time.time()
        self._began = time.monotonic()
        self._sessions = Sessions(target, self._cases, self._session_settings(tokens), on_event, self._take)

    def _session_settings(self, tokens: TokenKey | None) -> SessionSettings:
        settings, collector = self._settings, self._collector
        third_domain = collector.domain if collector is not None else settings.third_party.rpartition("@")[2]
        is_tls = self._target.port in settings.implicit_tls_ports
        return SessionSettings(
            naming=NamingSettings(
                tester=settings.tester,
                tester_local=settings.tester_local,
                tester_domain=settings.tester_domain
                or (third_domain if collector is not None else settings.tester.name),
                third_party=settings.third_party if collector is None else f"relay-test@{third_domain}",
                test_id=self._test_id,
                key=tokens if collector is not None else None,
                nonce=settings.nonce,
            ),
            source_address=settings.source_address,
            patience=settings.patience,
            at_once=settings.at_once,
            errors_borne=settings.errors_borne,
            dialogue_octets=settings.dialogue_octets,
            implicit_tls=lenient_context() if is_tls else None,
            began=self._began,
            ends_at=self._began + settings.deadline_seconds,
        )

    async def run(self) -> Report:
        await self._sessions.say_all()
        if self._collector is not None:
            await self._ask_collector(self._collector)
        report = self._report()
        self._tell(EventKind.DONE, report.words)
        return report

    # --- cases

    def _take(self, settled: Settled) -> None:
        """A case will not be said again. A verdict that the collector may still change is told as it stands."""
        self._settled[settled.case.number] = settled
        self._judge(settled, NO_COLLECTOR)

    def _judge(self, settled: Settled, evidence: Evidence) -> None:
        result = _result(settled, evidence)
        if self._results.get(settled.case.number) != result:
            self._results[settled.case.number] = result
            self._tell(EventKind.JUDGED, session=result.session, result=result)

    async def _ask_collector(self, collector: CollectorClient) -> None:
        """Waits for what was accepted, no longer than makes sense; then every case is judged by what arrived."""
        accepted = {n for n, one in self._results.items() if one.verdict is CaseVerdict.ACCEPTED}
        local = {
            n for n, one in self._results.items() if one.verdict is CaseVerdict.LOCAL and one.stage is Stage.CONTENT
        }
        patience = self._settings.delivery_seconds if accepted else NOTICE_SECONDS if local else 0.0
        if accepted:
            self._tell(EventKind.WAITING, "for the probes that were accepted", seconds=patience)
        await self._await_receipts(collector, accepted, local, min(patience, self._settings.delivery_seconds))
        probes = collections.Counter(one.case_number for one in self._receipts if not one.is_bounce)
        notices = collections.Counter(one.case_number for one in self._receipts if one.is_bounce)
        for number, settled in self._settled.items():
            is_known = not self._collector_words
            self._judge(settled, Evidence(True, is_known, probes[number], notices[number]))

    async def _await_receipts(
        self, collector: CollectorClient, accepted: set[int], local: set[int], seconds: float
    ) -> None:
        """Until all that was accepted has arrived or was returned, or time is over; shorter once something has arrived."""
        ends_at = latest = time.monotonic() + seconds
        while True:
            try:
                receipts = await collector.receipts(self._test_id)
            except CollectorFault as fault:
                self._collector_words = str(fault)
            else:
                if len(receipts) > len(self._receipts) and any(not one.is_bounce for one in receipts):
                    ends_at = min(time.monotonic() + STRAGGLER_SECONDS, latest)
                self._receipts, self._collector_words = receipts, ""
                if accepted | local <= {one.case_number for one in receipts}:
                    return
            if time.monotonic() >= ends_at:
                return
            await asyncio.sleep(min(POLL_SECONDS, max(0.0, ends_at - time.monotonic())))

    # --- the report

    def _report(self) -> Report:
        sessions = self._sessions
        results = tuple(self._results[case.number] for case in self._cases if case.number in self._results)
        is_from_itself = sessions.local_address in (self._target.address, "127.0.0.1", "::1")
        verdict = judge_host(self._cases, [(result.number, result.verdict) for result in results])
        report = Report(
            target=self._target.name or self._target.address,
            address=self._target.address,
            port=self._target.port,
            verdict=verdict,
            words=_host_words(verdict, results, sessions.given_up),
            results=results,
            started_at=self._started_at,
            seconds=round(time.monotonic() - self._began, 3),
            reach=self._reach(),
            test_id=self._test_id,
            hello_name=sessions.namer.hello_name,
            banner=sessions.banner,
            software=recognise_software(sessions.banner, [result.reply for result in results]),
            offers=sessions.offers,
            tls=sessions.tls,
            is_collector_used=self._collector is not None,
            paths=self._paths(),
            doubts=self._doubts(),
            transcripts=tuple(sessions.transcripts),
        )
        return msgspec.structs.replace(report, remedy=find_remedy(report, is_from_itself=is_from_itself))

    def _reach(self) -> Reach:
        return Reach.TALKED if self._sessions.banner else self._sessions.reach

    def _doubts(self) -> tuple[str, ...]:
        doubts = [self._sessions.namer.doubt] if self._sessions.namer.doubt else []
        if self._is_from_the_host_itself() and any(one.verdict in _OPEN for one in self._results.values()):
            doubts.append(
                f"the test came from {self._sessions.local_address}, an address of the machine itself, which the host may "
                "rightly trust: test it from outside too, or from another address (--source)"
            )
        if self._collector_words:
            doubts.append(f"the collector could not be asked: {self._collector_words}")
        if any(result.verdict is CaseVerdict.BOUNCED for result in self._results.values()):
            doubts.append(
                "it sends notices about mail it has accepted to whom that mail names as its sender (backscatter): "
                "have it refuse unknown recipients at RCPT"
            )
        return tuple(doubts)

    def _is_from_the_host_itself(self) -> bool:
        own = self._sessions.local_address
        return own == self._target.address or own.startswith("127.") or own == "::1"

    def _paths(self) -> tuple[Path, ...]:
        """The ways of the probes that arrived; one for each case."""
        found: dict[int, Path] = {}
        for receipt in self._receipts:
            if not receipt.is_bounce and receipt.case_number not in found:
                found[receipt.case_number] = path_of(receipt, self._target.address)
        return tuple(found[number] for number in sorted(found))

    def _tell(
        self, kind: EventKind, line: str = "", session: int = -1, result: CaseResult | None = None, seconds: float = 0.0
    ) -> None:
        at = time.monotonic() - self._began
        self._on_event(ProbeEvent(kind, at, session, line, result, seconds, len(self._results), len(self._cases)))


def _result(settled: Settled, evidence: Evidence) -> CaseResult:
    answer = settled.answer
    if answer is not None:
        verdict = judge_case(settled.case, answer, evidence)
    elif evidence.probes:
        verdict = CaseVerdict.RELAYED
    else:
        verdict = CaseVerdict.UNKNOWN if settled.is_tried else CaseVerdict.NOT_TRIED
    return CaseResult(
        number=settled.case.number,
        name=settled.case.name,
        verdict=verdict,
        stage=answer.stage if answer is not None else Stage.CONNECT,
        reply=str(answer.reply) if answer is not None and answer.reply.code else "",
        words=settled.words or _why(verdict, settled, evidence),
        session=settled.session,
        seconds=settled.seconds,
        attempts=settled.attempts,
        said=settled.said,
    )


_WHY_UNKNOWN = {
    Refusal.CLIENT: "the host refuses this tester, not relaying; test from an address that it talks to",
    Refusal.SENDER: "the host refuses the tester's reverse-path before it has heard the recipient; give it another (--from)",
    Refusal.HELLO: "the host refuses the tester's name; give it one that it takes (--hello)",
    Refusal.DOMAIN: "the host can't find the third party's domain, so it has not said whether it relays; give it another (--to)",
    Refusal.LATER: "the host said later, until time was over",
    Refusal.RELAYING: "the host took the mail so far and then nothing more",
}


def _why(verdict: CaseVerdict, settled: Settled, evidence: Evidence) -> str:
    if verdict is CaseVerdict.NOT_DELIVERED and evidence.notices:
        return "the host sent a notice that it could not be delivered"
    if verdict is CaseVerdict.UNKNOWN and settled.answer is not None:
        return _WHY_UNKNOWN[settled.answer.refusal]
    return ""


def _host_words(verdict: HostVerdict, results: Sequence[CaseResult], given_up: str) -> str:
    """The verdict in one sentence, with what it rests on."""
    numbers = {kind: [r.number for r in results if r.verdict is kind] for kind in CaseVerdict}
    match verdict:
        case HostVerdict.OPEN if numbers[CaseVerdict.RELAYED]:
            return f"open: it relayed {_cases(numbers[CaseVerdict.RELAYED])}; the collector has it"
        case HostVerdict.OPEN:
            words = _cases(numbers[CaseVerdict.ACCEPTED])
            return f"open: it accepted {words} with a 250 after the data (accepted, delivery not observed)"
        case HostVerdict.CLOSED:
            tried = len(results) - len(numbers[CaseVerdict.NOT_TRIED])
            return f"closed: {tried} cases tried, none relayed"
    if given_up:
        return f"no verdict: {given_up}"
    if numbers[CaseVerdict.NOT_DELIVERED]:
        return f"no verdict: it accepted {_cases(numbers[CaseVerdict.NOT_DELIVERED])}, and nothing arrived at the collector in time"
    if numbers[CaseVerdict.ACCEPTED]:
        return (
            f"no verdict: it accepted {_cases(numbers[CaseVerdict.ACCEPTED])} (accepted, delivery not observed), but it accepts "
            "any mailbox of its own, and these may be such; a collector can tell"
        )
    doubtful = doubtful_mailboxes(CASES, {r.number: r.verdict for r in results})
    if not numbers[CaseVerdict.UNKNOWN] and doubtful:
        return (
            f"no verdict: it refuses mailboxes that it doesn't have, and yet accepted {_cases(doubtful)}: an alias may forward "
            "them to anybody, though nothing has arrived; see where they go"
        )
    words = _cases(numbers[CaseVerdict.UNKNOWN])
    why = next((r.words or r.reply for r in results if r.verdict is CaseVerdict.UNKNOWN), "nothing was refused")
    return (
        f"no verdict: {words} got no answer that decides: {why}"
        if numbers[CaseVerdict.UNKNOWN]
        else f"no verdict: {why}"
    )


def _cases(numbers: Sequence[int]) -> str:
    """ "case 101", "cases 101, 102, 103 and 5 more"."""
    shown = ", ".join(map(str, numbers[:3]))
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f"case{'s' if len(numbers) > 1 else ''} {shown}{more}"
