"""Verdicts: what the answers to a case mean, and what the cases say of a host. Pure.

A reply to RCPT proves nothing in either direction. A case is *relayed* when its token has come back from the collector;
before that a 250 after the data is *accepted*. A refusal counts as one when the host refuses the relaying: a host that
refuses the tester itself (a blocklist, a greylist, a full disk) has not said what it does with others, and gets no verdict.
"""

import enum
import re
from collections.abc import Iterable, Sequence

import msgspec

from posthouse.smtp.reply import Reply
from posthouse.tester.case import Case, Right


class CaseVerdict(enum.StrEnum):
    """What became of a case."""

    RELAYED = "relayed"
    """The collector has it."""
    ACCEPTED = "accepted"
    """250 after the data, and no collector takes part."""
    NOT_DELIVERED = "not-delivered"
    """250 after the data, and the collector waited in vain."""
    REFUSED = "refused"
    LOCAL = "local"
    """A mailbox of the host's own was accepted, as it may be."""
    BOUNCED = "bounced"
    """The host sent a notice about it to the third party (backscatter): bad, but no relaying."""
    NOT_TRIED = "not-tried"
    """It can't be said to this host: it lacks the extension."""
    UNKNOWN = "unknown"
    """No verdict."""


class HostVerdict(enum.StrEnum):
    """What a host is."""

    OPEN = "open"
    CLOSED = "closed"
    UNKNOWN = "unknown"

    @property
    def exit_status(self) -> int:
        """0 closed, 1 open, 3 no verdict."""
        return {HostVerdict.CLOSED: 0, HostVerdict.OPEN: 1, HostVerdict.UNKNOWN: 3}[self]


CASE_WORDS = {
    CaseVerdict.RELAYED: "relayed",
    CaseVerdict.ACCEPTED: "accepted, delivery not observed",
    CaseVerdict.NOT_DELIVERED: "accepted, not delivered",
    CaseVerdict.REFUSED: "refused",
    CaseVerdict.LOCAL: "accepted for a local mailbox",
    CaseVerdict.BOUNCED: "a notice went to the third party",
    CaseVerdict.NOT_TRIED: "not tried",
    CaseVerdict.UNKNOWN: "no verdict",
}
"""The verdicts for people."""


class Stage(enum.StrEnum):
    """How far a case came: the command whose answer decided it."""

    CONNECT = "connect"
    GREETING = "greeting"
    HELLO = "hello"
    TLS = "tls"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"
    DELIVERY = "delivery"


class Refusal(enum.StrEnum):
    """What a negative reply refuses."""

    RELAYING = "relaying"
    """This case: because it would be relaying, or in words that say nothing else."""
    TESTER = "tester"
    """The tester's address, name or reverse-path, or everybody for now: another client may get another answer."""
    DOMAIN = "domain"
    """The third party's domain, which can't be looked up."""
    LATER = "later"
    """Nothing yet: try again."""


_relaying = re.compile(
    r"relay|not (?:permitted|allowed|local|authori[sz]ed)|authenticat|auth required|log ?in first"
    r"|invalid recipient|we do not accept mail for|don'?t accept mail for|not one of (?:my|our)|rcpthosts|no such domain here",
    re.IGNORECASE,
).search
_tester = re.compile(
    r"blocked using|black ?list|block ?list|dnsbl|\brbl\b|spamhaus|spamcop|reputation|is listed|banned|dynamic ip|generic"
    r"|helo command rejected|ehlo command rejected|bad helo|invalid helo|sender address rejected|sender verify|unable to verify sender"
    r"|client host rejected|cannot find your (?:reverse )?host|reverse dns|ptr record|\bspf\b|access denied - |too many connections"
    r"|too many (?:errors|bad|concurrent)",
    re.IGNORECASE,
).search
_domain = re.compile(
    r"domain (?:not found|of recipient|does not (?:exist|accept))|recipient address rejected: .*domain|host (?:not found|unknown)"
    r"|unrouteable|unroutable|null ?mx|no such domain\b(?! here)|cannot resolve|name server",
    re.IGNORECASE,
).search
_later = re.compile(r"gr[ae]y ?list|try again|please retry|come back later|temporar", re.IGNORECASE).search
_TESTER_CODES = frozenset({"5.1.7", "5.1.8", "4.1.7", "4.1.8", "5.7.25", "5.7.26", "5.7.27", "5.7.23", "4.7.25"})
_DOMAIN_CODES = frozenset({"5.1.2", "4.1.2", "5.1.10", "5.4.4", "4.4.4"})


def read_refusal(reply: Reply, stage: Stage) -> Refusal:
    """What a 4yz or 5yz at that stage refuses.

    At RCPT a server says what it won't do; before that it has not heard the recipient, so it refuses the tester. Postfix's
    usual answer to strangers is a 454 that says "Relay access denied": transient by its number, and a refusal by its words.
    """
    text = reply.text
    if stage in (Stage.CONNECT, Stage.GREETING, Stage.TLS) or _tester(text) or reply.enhanced in _TESTER_CODES:
        return Refusal.TESTER
    if reply.code == 421:
        return Refusal.LATER
    if reply.enhanced in _DOMAIN_CODES or _domain(text):
        return Refusal.DOMAIN
    if reply.is_transient:
        return Refusal.RELAYING if _relaying(text) and not _later(text) else Refusal.LATER
    return Refusal.RELAYING


class Answer(msgspec.Struct, frozen=True):
    """What a host answered to a case: how far it came, the reply there, and what a negative reply refuses."""

    stage: Stage
    reply: Reply
    refusal: Refusal = Refusal.RELAYING


class Evidence(msgspec.Struct, frozen=True):
    """What the collector has of a case. `is_asked` is False where no collector takes part; `is_known` where it can't be reached."""

    is_asked: bool = False
    is_known: bool = True
    probes: int = 0
    notices: int = 0


NO_COLLECTOR = Evidence()


def judge_case(case: Case, answer: Answer, evidence: Evidence = NO_COLLECTOR) -> CaseVerdict:
    """The verdict on a case that was said."""
    if evidence.probes:
        return CaseVerdict.RELAYED
    if case.notice and evidence.notices:
        return CaseVerdict.BOUNCED
    if answer.reply.is_positive:
        return _judge_accepted(case, answer, evidence)
    if answer.refusal is Refusal.RELAYING:
        return CaseVerdict.REFUSED
    if answer.refusal is Refusal.DOMAIN and case.right is Right.LOCAL:
        return CaseVerdict.REFUSED
    return CaseVerdict.UNKNOWN


def _judge_accepted(case: Case, answer: Answer, evidence: Evidence) -> CaseVerdict:
    if answer.stage is not Stage.CONTENT:
        return CaseVerdict.UNKNOWN  # a positive reply after which nothing more could be said
    if case.right is Right.LOCAL:
        return CaseVerdict.LOCAL
    if not evidence.is_asked:
        return CaseVerdict.ACCEPTED
    return CaseVerdict.NOT_DELIVERED if evidence.is_known else CaseVerdict.UNKNOWN


PROOF_OF_OPEN = frozenset({CaseVerdict.RELAYED, CaseVerdict.ACCEPTED})
NO_PROOF = frozenset({CaseVerdict.UNKNOWN, CaseVerdict.NOT_DELIVERED})


def judge_host(cases: Sequence[Case], verdicts: Iterable[tuple[int, CaseVerdict]]) -> HostVerdict:
    """Open when one case proves it; closed when every case that can be said to the host was answered as its row asks.

    `verdicts` are case numbers and verdicts; a case without one makes "closed" impossible, and so does a test in which
    nothing at all was refused.
    """
    found = dict(verdicts)
    if not PROOF_OF_OPEN.isdisjoint(found.values()):
        return HostVerdict.OPEN
    if any(case.number not in found for case in cases) or not NO_PROOF.isdisjoint(found.values()):
        return HostVerdict.UNKNOWN
    return HostVerdict.CLOSED if CaseVerdict.REFUSED in found.values() else HostVerdict.UNKNOWN
