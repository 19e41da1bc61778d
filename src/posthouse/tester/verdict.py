"""Verdicts: what the answers to a case mean, and what the cases say of a host. Pure.

A reply to RCPT proves nothing in either direction. A case is *relayed* when its token has come back from the collector;
before that a 250 after the data is *accepted*. A refusal counts as one when the host refuses the relaying: a host that
refuses the tester itself (a blocklist, a greylist, a full disk) has not said what it does with others, and gets no verdict.
"""

import enum
import re
from collections.abc import Iterable, Mapping, Sequence

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
    CLIENT = "client"
    """The tester's address, or everybody for now: another client may get another answer."""
    SENDER = "sender"
    """The reverse-path, or what else stands in MAIL."""
    HELLO = "hello"
    """The name in EHLO."""
    DOMAIN = "domain"
    """The third party's domain, which can't be looked up."""
    LATER = "later"
    """Nothing yet: try again."""


_quoted = re.compile(r"<[^>]*>|\S+@\S+").sub
"""What a reply repeats of ours, or names of its own: an address with "relay" in it says nothing."""


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


_RELAYING = _words(
    r"(?<![\w.-])relay(?:ing|ed)?(?![\w.-]*\w)",
    r"not (?:permitted|allowed|authori[sz]ed)",
    r"authenticat|authentification|auth required|log ?in first",
    r"(?:don'?t|do not) accept mail for",
    r"not one of (?:my|our)|rcpthosts",
)
_HELLO = _words(r"\b(?:helo|ehlo)\b.*(?:reject|invalid|bad|forg|denied|refus)", r"(?:bad|invalid|forged) (?:helo|ehlo)")
_SENDER = _words(r"sender address rejected", r"sender verif", r"verify (?:the )?sender", r"\bspf\b", r"\bdmarc\b")
_CLIENT = _words(
    r"blocked using|black ?list|block ?list|dnsbl|\brbls?\b|spamhaus|spamcop|reputation|\blisted\b|banned|dynamic ip",
    r"client host rejected|cannot find your|reverse dns|\bptr\b|your (?:ip|host|address|network)",
    r"too many (?:connections|concurrent|sessions|errors|bad|syntax|unknown|nonmail|commands|unrecogni[sz]ed)",
)
_DOMAIN = _words(
    r"domain (?:not found|of recipient|does not (?:exist|accept))",
    r"host (?:not found|unknown)|unrouteable|unroutable|null ?mx|cannot resolve|all relevant mx",
)
_UNAVAILABLE = _words(r"service (?:currently )?(?:unavailable|not available)")
_LATER = _words(
    r"gr[ae]y ?list", r"try (?:again|later)|retry|come back", r"temporar", r"insufficient|out of (?:space|memory)"
)
_CODES = {
    Refusal.SENDER: frozenset({"5.1.7", "5.1.8", "4.1.7", "4.1.8", "5.7.23", "5.7.26"}),
    Refusal.CLIENT: frozenset({"5.7.25", "4.7.25", "5.7.27"}),
    Refusal.DOMAIN: frozenset({"5.1.2", "4.1.2", "5.1.10", "5.4.4", "4.4.4"}),
}
_BEFORE_MAIL = frozenset({Stage.CONNECT, Stage.GREETING, Stage.TLS})


def read_refusal(reply: Reply, stage: Stage) -> Refusal:
    """What a 4yz or 5yz at that stage refuses.

    At RCPT a server says what it won't do; before that it has not heard the recipient, so it refuses something else.
    Postfix's usual answer to strangers is a 454 that says "Relay access denied": transient by its number, and a refusal by
    its words.
    """
    text = _quoted("<>", reply.text)
    for refusal, words in ((Refusal.HELLO, _HELLO), (Refusal.SENDER, _SENDER), (Refusal.CLIENT, _CLIENT)):
        if words.search(text) or reply.enhanced in _CODES.get(refusal, ()):
            return refusal
    if _UNAVAILABLE.search(text):  # postscreen's 450 to whom it does not know yet; others say it for good
        return Refusal.LATER if reply.is_transient else Refusal.CLIENT
    if stage in _BEFORE_MAIL:
        return Refusal.LATER if reply.is_transient else Refusal.CLIENT
    if reply.code == 421:
        return Refusal.LATER
    says_relaying = bool(_RELAYING.search(text)) or reply.code == 530  # RFC 4954 6: authentication required
    if reply.is_transient and (not says_relaying or _LATER.search(text)):
        return Refusal.DOMAIN if _is_about_domain(reply) else Refusal.LATER
    if says_relaying:
        return Refusal.RELAYING
    if stage is Stage.HELLO:
        return Refusal.HELLO
    if stage is Stage.MAIL:
        return Refusal.SENDER
    return Refusal.DOMAIN if _is_about_domain(reply) else Refusal.RELAYING


def _is_about_domain(reply: Reply) -> bool:
    return reply.enhanced in _CODES[Refusal.DOMAIN] or _DOMAIN.search(reply.text) is not None


class Answer(msgspec.Struct, frozen=True):
    """What a host answered to a case: how far it came, the reply there, and what a negative reply refuses.

    `is_local`: what it accepted is the mail around a smuggled case, to a mailbox of its own.
    """

    stage: Stage
    reply: Reply
    refusal: Refusal = Refusal.RELAYING
    is_local: bool = False


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
    return CaseVerdict.REFUSED if _is_refusal_of(case, answer.refusal) else CaseVerdict.UNKNOWN


def _is_refusal_of(case: Case, refusal: Refusal) -> bool:
    """What the host refuses is what makes this case one. The plain case is refused as relaying, or not at all."""
    match refusal:
        case Refusal.RELAYING:
            return True
        case Refusal.SENDER | Refusal.HELLO:
            return case.is_odd_before_rcpt
        case Refusal.DOMAIN:
            return not case.names_third_party_plainly
        case _:
            return False


def _judge_accepted(case: Case, answer: Answer, evidence: Evidence) -> CaseVerdict:
    if answer.is_local or (case.right is Right.LOCAL and answer.stage in (Stage.RCPT, Stage.CONTENT)):
        return CaseVerdict.LOCAL
    if answer.stage is not Stage.CONTENT:
        return CaseVerdict.UNKNOWN  # a positive reply after which nothing more could be said
    if not evidence.is_asked:
        return CaseVerdict.ACCEPTED
    return CaseVerdict.NOT_DELIVERED if evidence.is_known else CaseVerdict.UNKNOWN


NO_PROOF = frozenset({CaseVerdict.UNKNOWN, CaseVerdict.NOT_DELIVERED, CaseVerdict.ACCEPTED})


def judge_host(cases: Sequence[Case], verdicts: Iterable[tuple[int, CaseVerdict]]) -> HostVerdict:
    """Open when one case proves it; closed when every case that can be said to the host was answered as its row asks.

    `verdicts` are case numbers and verdicts; a case without one makes "closed" impossible, and so does a test in which
    nothing at all was refused. Without a collector, odd mailboxes of the host's own prove nothing where the host has taken
    mail for a mailbox that can't exist: it takes any. A host that knows its mailboxes and yet takes one whose name is somebody
    else's address may be forwarding to him.
    """
    found = dict(verdicts)
    takes_any = any(case.notice and found.get(case.number) in _TAKEN for case in cases)
    proving = [found[case.number] for case in cases if case.number in found and not (takes_any and case.may_be_local)]
    if CaseVerdict.RELAYED in found.values() or CaseVerdict.ACCEPTED in proving:
        return HostVerdict.OPEN
    if any(case.number not in found for case in cases) or not NO_PROOF.isdisjoint(found.values()):
        return HostVerdict.UNKNOWN
    if not takes_any and doubtful_mailboxes(cases, found):
        return HostVerdict.UNKNOWN
    return HostVerdict.CLOSED if CaseVerdict.REFUSED in found.values() else HostVerdict.UNKNOWN


def doubtful_mailboxes(cases: Iterable[Case], found: Mapping[int, CaseVerdict]) -> tuple[int, ...]:
    """The numbers of cases whose mailboxes were accepted and may be aliases that forward to anybody."""
    return tuple(case.number for case in cases if case.may_forward and found.get(case.number) is CaseVerdict.LOCAL)


_TAKEN = frozenset({CaseVerdict.LOCAL, CaseVerdict.BOUNCED})
