"""The sessions of one test: which are open, what each says, and what is learned from how the host takes it.

A host that hangs up, slows down or says "later" has not answered the case; it is said again, later or in a session of its own,
as often as makes sense. A host with which no session gets anywhere is given up, in words.
"""

import asyncio
import contextlib
import errno
import re
import ssl
import time
from collections.abc import Callable, Sequence

import msgspec

from posthouse.net.client import Endpoint, Loss, PeerLost
from posthouse.smtp.driving import LocalProtocolError
from posthouse.smtp.reply import Reply
from posthouse.tester.case import Case, Way
from posthouse.tester.certificate import note_tls
from posthouse.tester.collector import COLLECTOR_BANNER
from posthouse.tester.dialogue import KEPT_OCTETS, WORDS, Approach, Dialogue, Patience, nobody_hears, open_dialogue
from posthouse.tester.event import EventKind, ProbeEvent, ignore
from posthouse.tester.naming import Namer, NamingSettings, is_host_name
from posthouse.tester.plan import Pending, Plan
from posthouse.tester.report import Reach, SessionTranscript, Target, TlsNoted
from posthouse.tester.verdict import Answer, Refusal, Stage, read_refusal
from posthouse.tester.ways import NotOffered, Said, proxy_header, say, say_together

MOST_LOST = 3
"""So many sessions may end under a case."""
MOST_UNHEARD = 4
"""So many sessions may end before a case was said."""
MOST_FRUITLESS = 5
"""So many sessions on end without one answer, and the host is given up."""
SYNTAX_ERRORS = 3
"""Exim hangs up at the next (smtp_max_synprot_errors)."""
MOST_SESSIONS = 16
SLOW_SECONDS = 0.8

_IS_COLLECTOR = (
    "by its greeting this is the collector of a relay test, which takes the probes itself and so can't be told from a relay; "
    "test the hosts that relay, or this host's other ports"
)
_BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0)
_DEFERRALS = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0)
_ODD_DEFERRALS = 2
"""So often one case is said again that alone is deferred: an error of the host's, not a greylist."""
_syntax = re.compile(r"syntax|unrecogni|command|sequence|brackets?|malformed", re.IGNORECASE).search
_hint = re.compile(r"\b(\d{1,4}) ?(s|sec|seconds?|min|minutes?|m)\b|\b(\d\d?):(\d\d):(\d\d)\b", re.IGNORECASE).search
_NO_WAY = frozenset({errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})
_UNLIKELY_TO_MEND = frozenset({Loss.BROKEN, Loss.TIMED_OUT, Loss.TLS})
"""A host of which one knows nothing else is tried twice."""
_PROXIED = frozenset({Way.PROXY_V1, Way.PROXY_V2})
_NO_HELLO = frozenset({Way.HELO, Way.NO_HELLO}) | _PROXIED


class Settled(msgspec.Struct, frozen=True):
    """A case that will not be said again. `answer` is None where there was none; `words` then say why, and `is_tried` whether
    it was said at all or can't be said to this host."""

    case: Case
    answer: Answer | None
    words: str = ""
    is_tried: bool = True
    session: int = -1
    seconds: float = 0.0
    attempts: int = 0
    said: tuple[str, ...] = ()


class SessionSettings(msgspec.Struct, frozen=True):
    """How sessions are held.

    Of their dialogues `dialogue_octets` are kept in all. `ends_at` is the deadline on the monotonic clock, `began` the zero of
    all times told.
    """

    naming: NamingSettings
    source_address: str
    patience: Patience
    at_once: int
    errors_borne: int
    implicit_tls: ssl.SSLContext | None
    dialogue_octets: int
    began: float
    ends_at: float


class Sessions:
    """Says all cases of `plan` to `target`; `settled` fills as it goes."""

    def __init__(
        self,
        target: Target,
        cases: Sequence[Case],
        settings: SessionSettings,
        on_event: Callable[[ProbeEvent], None],
        on_settled: Callable[[Settled], None],
    ) -> None:
        self.transcripts: list[SessionTranscript] = []
        self.banner = ""
        self.hello_reply: Reply | None = None
        self.offers: tuple[str, ...] = ()
        self.tls = TlsNoted("unknown")
        self.namer = Namer(target, settings.naming)
        self.local_address = ""
        """Where the test comes from."""
        self.reach = Reach.NOT_REACHED
        self.given_up = ""
        """Why nothing more is tried; "" while there is hope."""
        self._target = target
        self._settings = settings
        self._on_event = on_event
        self._on_settled = on_settled
        self._plan = Plan(cases, settings.errors_borne)
        self._at_once = settings.at_once
        self._open = 0
        self._numbers = 0
        self._kept = 0
        self._told_until = 0.0
        self._fruitless = 0
        self._answered = 0
        self._changed = asyncio.Event()
        self._leaving: set[asyncio.Task[None]] = set()
        self._dialogues: set[Dialogue] = set()

    # --- working through the plan

    async def say_all(self) -> None:
        """Until all is settled, or the deadline has come."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + self._left()):
                    await self._work_alone()
                    async with asyncio.TaskGroup() as group:
                        for _ in range(self._at_once):
                            group.create_task(self._work())
            if self._leaving:
                await asyncio.wait(self._leaving)
        except asyncio.CancelledError:
            for task in self._leaving:
                task.cancel()
            for dialogue in self._dialogues:  # whoever wanted the test has gone: no polite farewell
                dialogue.abort()
            raise
        self.transcripts.sort(key=lambda one: one.session)
        for pending in self._plan.drain():
            self._settle(Settled(pending.case, None, self.given_up or "time was over"))

    async def _work_alone(self) -> None:
        """Until the first session has brought an answer: who is there, and how does it take it?"""
        while not self.given_up and not self._answered and len(self._plan):
            if not await self._next_session():
                await self._wait()

    async def _work(self) -> None:
        while not self.given_up and (len(self._plan) or self._open):
            if self._is_busy or not await self._next_session():
                await self._wait()
        self._changed.set()

    @property
    def _is_busy(self) -> bool:
        """Sessions that take their leave are still sessions to the host (Exim bears 20 in all: smtp_accept_max)."""
        most_in_all = 2 * self._at_once if self._at_once > 2 else self._at_once
        return self._open >= self._at_once or self._open + len(self._leaving) >= most_in_all

    async def _next_session(self) -> bool:
        """One session, if there is anything to say now."""
        batch = self._plan.take(time.monotonic())
        if not batch:
            return False
        self._open += 1
        try:
            await self._hold_session(batch)
        finally:
            self._open -= 1
            self._changed.set()
        return True

    async def _wait(self) -> None:
        """Until a session has ended, or the next case is due."""
        due = self._plan.next_due()
        seconds = self._left() if due is None else max(0.0, due - time.monotonic())
        self._changed.clear()
        if not self._open and seconds > 1 and time.monotonic() >= self._told_until:
            self._told_until = time.monotonic() + seconds
            self._tell(EventKind.WAITING, line="the host asked to come back later", seconds=seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds + 0.01):
                await self._changed.wait()

    # --- one session

    async def _hold_session(self, batch: Sequence[Pending]) -> None:
        number, self._numbers = self._numbers, self._numbers + 1
        started_at = time.time()
        self._tell(EventKind.SESSION_OPENED, number)
        left = list(batch)
        dialogue: Dialogue | None = None
        try:
            dialogue = await self._open_dialogue(number, batch[0].case)
            self._dialogues.add(dialogue)
            if await self._greet(dialogue, number, left):
                is_shared = len(left) > 1 and left[0].is_together
                await (self._say_shared if is_shared else self._say_batch)(dialogue, number, left)
        except PeerLost as lost:
            self._lost_early(left, lost)
        finally:
            self._plan.put_back(left, max((one.not_before for one in left), default=0.0))
            if dialogue is not None:
                self._end(dialogue, number, started_at)

    async def _open_dialogue(self, number: int, case: Case) -> Dialogue:
        settings, target = self._settings, self._target
        name = target.name if is_host_name(target.name) else ""
        approach = Approach(
            Endpoint(name, target.address, target.port),
            settings.source_address,
            settings.patience,
            settings.implicit_tls,
        )
        first = proxy_header(case.way, target.address, target.port)
        return await open_dialogue(
            approach,
            self._left(),
            settings.began,
            nobody_hears if self._on_event is ignore else lambda line: self._tell(EventKind.LINE, number, line),
            first,
            max(0, min(KEPT_OCTETS, settings.dialogue_octets - self._kept)),
        )

    async def _greet(self, dialogue: Dialogue, number: int, left: list[Pending]) -> bool:
        """The greeting and EHLO; True when the cases may be said."""
        case = left[0].case
        reply = await dialogue.greet()
        self.banner = self.banner or reply.text[:WORDS]
        if COLLECTOR_BANNER in reply.text:
            self.given_up = _IS_COLLECTOR
            return False
        self.local_address = dialogue.channel.local_address
        self.namer.come_from(self.local_address)
        if reply.code >= 400:
            self._turned_away(left, reply, Stage.GREETING, number)
            return False
        if case.way in _NO_HELLO:
            return True
        reply = await dialogue.hello(self.namer.names(case, dialogue).fill(case.hello))
        if reply.code < 300:
            self._note_hello(dialogue, reply)
            return True
        if case.is_odd_before_rcpt:
            self._settle_case(
                left.pop(0), Answer(Stage.HELLO, reply, read_refusal(reply, Stage.HELLO)), number, 0.0, ()
            )
        else:
            self._turned_away(left, reply, Stage.HELLO, number)
        return False

    async def _say_batch(self, dialogue: Dialogue, number: int, left: list[Pending]) -> None:
        """Says cases while the host bears it; those that have no answer stay in `left`."""
        errors = syntax = 0
        slow = 0
        quickest = float("inf")
        while left and errors < self._plan.errors_borne and syntax < SYNTAX_ERRORS and not dialogue.is_lost:
            pending = left[0]
            said = self.namer.make_ready(pending.case, dialogue)
            began = time.monotonic()
            try:
                outcome = await say(dialogue, said)
            except PeerLost as lost:
                self._lost_under(left.pop(0), lost, errors, number)
                return
            except LocalProtocolError as error:
                self._settle(Settled(left.pop(0).case, None, f"it can't be said here: {error}", session=number))
                return
            seconds = time.monotonic() - began
            left.pop(0)
            if isinstance(outcome, NotOffered):
                self._settle(Settled(pending.case, None, outcome.words, is_tried=False, session=number))
                continue
            self._note_tls(dialogue, pending.case)
            if not self._take_answer(pending, outcome, errors, number, seconds, said):
                return
            self._fruitless = 0
            self._answered += 1
            if outcome.reply.code >= 400:
                errors += 1
                syntax += _is_about_syntax(outcome.reply)
            slow += errors > 1 and seconds > SLOW_SECONDS and seconds > 3 * quickest
            if slow > 1:  # the host has begun to slow down
                self._plan.bear_less(errors - slow)
                return
            quickest = min(quickest, seconds)

    async def _say_shared(self, dialogue: Dialogue, number: int, left: list[Pending]) -> None:
        """Says all of `left` in one mail. Unless that answers them all they stay, to be said with fewer others, or none."""
        several = [self.namer.make_ready(pending.case, dialogue) for pending in left]
        began = time.monotonic()
        try:
            answer = await say_together(dialogue, several)
        except PeerLost:
            answer = None
        if answer is None or answer.reply.code == 421:
            for pending in left:
                pending.share_less()
            return
        seconds = time.monotonic() - began
        self._fruitless = 0
        self._answered += 1
        shared, left[:] = list(left), []
        for pending, said in zip(shared, several, strict=True):
            self._take_answer(pending, answer, 0, number, seconds, said)

    def _take_answer(
        self, pending: Pending, answer: Answer, errors: int, number: int, seconds: float, said: Said
    ) -> bool:
        """Settles the case, or has it said again; False when the session is over."""
        lines = (said.mail, said.rcpt)
        reply = answer.reply
        is_farewell = reply.code == 421 and answer.refusal is not Refusal.RELAYING
        if is_farewell or (answer.refusal is Refusal.CLIENT and reply.code >= 400 and errors):
            # The host has had enough of this session; it is no answer to the case.
            self._again(pending, f"the host ended the session: {reply}", errors, number, answer)
            return False
        if reply.is_transient and answer.refusal is Refusal.LATER:
            self._defer(pending, answer, number, seconds, lines)
        else:
            self._settle_case(pending, answer, number, seconds, lines)
        return True

    def _end(self, dialogue: Dialogue, number: int, started_at: float) -> None:
        """Takes leave in the background: some servers need a while for their 221."""
        task = asyncio.get_running_loop().create_task(self._take_leave(dialogue, number, started_at))
        self._leaving.add(task)
        task.add_done_callback(self._left_behind)

    def _left_behind(self, task: asyncio.Task[None]) -> None:
        self._leaving.discard(task)
        self._changed.set()

    async def _take_leave(self, dialogue: Dialogue, number: int, started_at: float) -> None:
        try:
            await dialogue.quit()
        finally:
            dialogue.abort()
            self._dialogues.discard(dialogue)
            self._kept += dialogue.transcript.kept_octets
            if self._settings.dialogue_octets:
                self.transcripts.append(SessionTranscript(number, started_at, dialogue.transcript.finished()))
            self._tell(EventKind.SESSION_CLOSED, number)

    # --- what is learned

    def _lost_early(self, left: list[Pending], lost: PeerLost) -> None:
        """The session ended before a case was said."""
        if isinstance(lost.__cause__, ConnectionRefusedError):
            self.reach = Reach.NOBODY_LISTENS
        elif isinstance(lost.__cause__, OSError) and lost.__cause__.errno in _NO_WAY:
            self.reach = Reach.NO_WAY
        is_hopeless = lost.loss is Loss.NOT_REACHED or (lost.loss in _UNLIKELY_TO_MEND and self._fruitless > 0)
        self._no_session(left, f"the host {lost.words}", is_hopeless=is_hopeless and not self._answered)

    def _turned_away(self, left: list[Pending], reply: Reply, stage: Stage, number: int) -> None:
        """The host does not talk to us, or not now. For a case that begins before the greeting, that is the answer."""
        if left[0].case.way in _PROXIED and reply.is_permanent:
            self._settle_case(left.pop(0), Answer(stage, reply, Refusal.RELAYING), number, 0.0, ())
            return
        words = f"the host turned the tester away: {reply}"
        self._no_session(left, words, is_hopeless=reply.is_permanent and not self._answered)

    def _no_session(self, left: list[Pending], words: str, *, is_hopeless: bool) -> None:
        self._fruitless += 1
        if is_hopeless or self._fruitless > MOST_FRUITLESS:
            self.given_up = words
            return
        first = left[0]
        first.unheard += 1
        if first.unheard > MOST_UNHEARD:
            self._settle(Settled(left.pop(0).case, None, words))
        # Too many sessions at once, perhaps: fewer from now on, and not at once.
        self._at_once = max(1, min(self._at_once, self._open - 1))
        wait = _BACKOFF[min(self._fruitless, len(_BACKOFF)) - 1]
        for pending in left:
            pending.not_before = time.monotonic() + wait

    def _lost_under(self, pending: Pending, lost: PeerLost, errors: int, number: int) -> None:
        if pending.case.way in _PROXIED and lost.loss in (Loss.CLOSED, Loss.BROKEN):
            answer = Answer(Stage.HELLO, Reply(0, "", (lost.words,)), Refusal.RELAYING)
            self._settle(Settled(pending.case, answer, f"the host {lost.words}", session=number, attempts=1))
            return
        self._again(pending, f"the host {lost.words}", errors, number, None)

    def _again(self, pending: Pending, words: str, errors: int, number: int, answer: Answer | None) -> None:
        """The session ended under the case."""
        if errors:
            self._plan.bear_less(errors - 1)
        else:
            self._fruitless += 1
        pending.lost += 1
        if pending.lost >= MOST_LOST:
            self._settle(Settled(pending.case, answer, words, session=number, attempts=pending.lost + pending.deferred))
        else:
            self._plan.put_back([pending], time.monotonic() + _BACKOFF[pending.lost - 1] * (not errors))
        if self._fruitless > MOST_FRUITLESS and not self._answered:
            self.given_up = words

    def _defer(self, pending: Pending, answer: Answer, number: int, seconds: float, lines: tuple[bytes, ...]) -> None:
        pending.deferred += 1
        wait = _wait_asked(answer.reply) or _DEFERRALS[min(pending.deferred, len(_DEFERRALS)) - 1]
        is_patient = pending.deferred <= _ODD_DEFERRALS or "list" in answer.reply.text.lower()
        if wait < self._left() and is_patient:
            self._plan.put_back([pending], time.monotonic() + wait)
        else:
            self._settle_case(pending, answer, number, seconds, lines)

    def _note_hello(self, dialogue: Dialogue, reply: Reply) -> None:
        if self.hello_reply is None:
            self.hello_reply = reply
            self.offers = tuple(line[:100] for line in reply.lines[1:40])
            state = "offered" if dialogue.offers.starttls else "not-offered"
            self.tls = TlsNoted(state)
            self._note_implicit_tls(dialogue)
            if dialogue.slowest_seconds > 2 * SLOW_SECONDS:  # a tarpit for everybody: more sessions wait side by side
                self._at_once = MOST_SESSIONS

    def _note_implicit_tls(self, dialogue: Dialogue) -> None:
        if self._settings.implicit_tls is not None:
            self.tls = note_tls("implicit", dialogue.channel.tls_description, dialogue.channel.certificate)

    def _note_tls(self, dialogue: Dialogue, case: Case) -> None:
        if case.way is Way.STARTTLS:
            self.tls = note_tls("offered", dialogue.channel.tls_description, dialogue.channel.certificate)

    # --- words

    def _settle_case(
        self, pending: Pending, answer: Answer, number: int, seconds: float, lines: Sequence[bytes]
    ) -> None:
        attempts = 1 + pending.lost + max(0, pending.deferred - (answer.refusal is Refusal.LATER))
        said = tuple(line.decode("utf-8", "backslashreplace") for line in lines)
        self._settle(Settled(pending.case, answer, "", True, number, round(seconds, 4), attempts, said))

    def _settle(self, settled: Settled) -> None:
        self._on_settled(settled)

    def _tell(self, kind: EventKind, session: int = -1, line: str = "", seconds: float = 0.0) -> None:
        if self._on_event is ignore:
            return
        self._on_event(ProbeEvent(kind, time.monotonic() - self._settings.began, session, line, None, seconds))

    def _left(self) -> float:
        return max(0.0, self._settings.ends_at - time.monotonic())


def _is_about_syntax(reply: Reply) -> bool:
    return reply.code in (500, 501, 502, 503, 504, 555) or bool(_syntax(reply.text))


def _wait_asked(reply: Reply) -> float:
    """Seconds that a reply names to come back after; 0 when it names none."""
    found = _hint(reply.text)
    if not found:
        return 0.0
    number, unit, hours, minutes, seconds = found.groups()
    if number is None:
        return 3600.0 * int(hours) + 60.0 * int(minutes) + int(seconds) + 1
    return int(number) * (60.0 if unit.lower().startswith("m") else 1.0) + 1
