"""From outcomes to notices on disk: composes what `mail.dsn` says is owed and hands it to the intake like any other mail.

`done` is called when every notice that these outcomes call for is durable, or none is owed; until then the delivery keeps
the failed recipient in the queue, so a crash in between costs a second notice at worst, never the only one. A notice that
cannot be stored now (no space left) is tried again here.

A message from the null reverse-path gets no notice (RFC 5321 4.5.5). It is logged, not sent to the postmaster: what
cannot be bounced is mostly a notice to a forged address, and the history keeps the fact for `posthouse why`.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Final

import msgspec

from posthouse.mail.dsn import (
    Due,
    Original,
    Report,
    Reporting,
    action_of,
    compose_report,
    original_of,
    returns_whole,
    which_reports,
)
from posthouse.mail.envelope import Envelope, Origin, Recipient, queue_id_text
from posthouse.mail.grant import Grant
from posthouse.mail.header import HEADER_LIMIT, header_of, header_of_pieces
from posthouse.mail.message import Content, ContentFile, Message
from posthouse.mail.outcome import Failed
from posthouse.mail.trace import TraceWriter
from posthouse.observe import log, metrics
from posthouse.policy.decide import Deferral, Refusal, expand, grant_notification
from posthouse.policy.rules import Rules
from posthouse.relay.delivery import Results
from posthouse.relay.intake import Draft, Intake
from posthouse.smtp.address import NULL_PATH, Path
from posthouse.smtp.event import BodyType, MailParameters
from posthouse.spool.api import Clock, SpoolBroken, SpoolError

TRY_AGAIN_SECONDS: Final = 30.0
_OURSELVES: Final = Origin("", "")


class _Debt(msgspec.Struct, frozen=True, eq=False):
    """The reports owed about one message."""

    envelope: Envelope
    message: Message
    due: tuple[Due, ...]
    retry_until: int
    done: Callable[[], None]

    @property
    def wants_whole(self) -> bool:
        """Some report returns the whole message."""
        return any(returns_whole(self.envelope, each.kind, self.message.size_bytes) for each in self.due)


class _Notice(msgspec.Struct, frozen=True, eq=False):
    """One report on its way to disk."""

    about: Envelope
    due: Due
    report: Report
    stored: Callable[[], None]


class Bouncer:
    """Tells senders what became of their mail. Everything happens in the event loop but the reading of content files."""

    def __init__(
        self,
        hostname: str,
        intake: Intake,
        rules: Callable[[], Rules],
        clock: Clock,
        try_again_seconds: float = TRY_AGAIN_SECONDS,
    ) -> None:
        """`rules` gives those in force when a notice is made: aliases of ours may stand in a reverse-path."""
        self.hostname = hostname
        self._intake = intake
        self._rules = rules
        self._clock = clock
        self._try_again_seconds = try_again_seconds
        self._timers: set[asyncio.TimerHandle] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def send(
        self, envelope: Envelope, message: Message, results: Results, retry_until: int, done: Callable[[], None]
    ) -> None:
        """Sends the notices that `results` call for; `retry_until` (milliseconds since 1970) stands in delay notices.

        Failed gets a failure notice, Deferred a delay notice, Relayed and Delivered a success notice, where NOTIFY asks.
        `done` is called once, perhaps before this returns; never when the spool is broken, which ends the server.
        """
        due = which_reports(envelope, results)
        if not due:
            _tell_silence(envelope, results)
            done()
            return
        debt = _Debt(envelope, message, due, retry_until, done)
        if (file := message.content.file) is None:
            self._compose(debt, _octets_of(message.content, debt.wants_whole))
            return
        task = asyncio.get_running_loop().create_task(self._read_and_compose(debt, file))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Ends all waiting; what is not stored yet is owed again after the next start."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for task in self._tasks:
            task.cancel()

    async def _read_and_compose(self, debt: _Debt, file: ContentFile) -> None:
        limit = file.length if debt.wants_whole else min(file.length, HEADER_LIMIT)
        try:
            octets: bytes | None = await asyncio.to_thread(_read, file, limit)
        except OSError as error:
            log.warning("notice-without-original", queue_id=debt.envelope.id_text, error=str(error))
            octets = None
        self._compose(debt, octets)

    def _compose(self, debt: _Debt, octets: bytes | None) -> None:
        """`octets` are the content's first, all of them where a report returns the whole; None when they are lost."""
        reporting = Reporting(self.hostname, self._clock(), debt.retry_until)
        missing = len(debt.due)

        def stored() -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                debt.done()

        for due in debt.due:
            original = _original(debt, due, octets)
            report = compose_report(debt.envelope, due.results, due.kind, original, reporting)
            if report is None:  # which_reports owes none to the null reverse-path
                stored()
            else:
                self._store(_Notice(debt.envelope, due, report, stored))

    def _store(self, notice: _Notice) -> None:
        """Hands one notice to the intake; again later when there is no room, and forgets it when it may not be sent."""
        report = notice.report
        recipients = recipients_of_notice(report.forward_path, self._rules())
        if isinstance(recipients, Refusal):
            log.warning(
                "notice-refused",
                queue_id=notice.about.id_text,
                forward_path=str(report.forward_path),
                reason=recipients.reason.slug,
            )
            notice.stored()
            return
        if isinstance(recipients, Deferral):
            self._later(notice, recipients.reason.words)
            return
        if (full := self._intake.room_for(report.content.size_bytes)) is not None:
            self._later(notice, str(full))
            return
        queue_id = self._intake.new_queue_id()
        body = BodyType.EIGHT_BIT_MIME if report.content.is_8bit else BodyType.SEVEN_BIT
        draft = Draft(
            NULL_PATH,
            tuple(Recipient(path, grant) for path, grant in recipients),
            _OURSELVES,
            MailParameters(body=body, smtputf8=report.smtputf8),
        )

        def accepted(envelope: Envelope, error: SpoolError | None) -> None:
            if error is None:
                _tell_sent(notice, envelope)
                notice.stored()
            elif not isinstance(error, SpoolBroken):
                self._later(notice, str(error))

        trace = TraceWriter(self.hostname, _OURSELVES).received(queue_id_text(queue_id), self._clock())
        self._intake.take_in(queue_id, draft, trace, report.content, accepted)

    def _later(self, notice: _Notice, why: str) -> None:
        log.warning("notice-delayed", queue_id=notice.about.id_text, words=why)

        def again() -> None:
            self._timers.discard(timer)
            self._store(notice)

        timer = asyncio.get_running_loop().call_later(self._try_again_seconds, again)
        self._timers.add(timer)


def recipients_of_notice(forward_path: Path, rules: Rules) -> tuple[tuple[Path, Grant], ...] | Refusal | Deferral:
    """Whom a notice to `forward_path` goes to: a local alias stands for others here as anywhere."""
    grant = grant_notification(forward_path, rules)
    return grant if isinstance(grant, Refusal) else expand(forward_path, grant, rules)


def _original(debt: _Debt, due: Due, octets: bytes | None) -> Original | None:
    if octets is None:
        return None
    whole = returns_whole(debt.envelope, due.kind, debt.message.size_bytes)
    return original_of(debt.message, octets if whole else header_of(octets), is_whole=whole)


def _octets_of(content: Content, whole: bool) -> bytes:
    return b"".join(content.pieces) if whole else header_of_pieces(content.pieces)


def _read(file: ContentFile, limit: int) -> bytes:
    with FilePath(file.path).open("rb") as opened:
        opened.seek(file.offset)
        return opened.read(limit)


def _tell_sent(notice: _Notice, envelope: Envelope) -> None:
    for action in {action_of(outcome, notice.due.kind) for _, outcome in notice.due.results}:
        metrics.bounces.inc(action)
    log.info(
        "notice-sent",
        queue_id=notice.about.id_text,
        notice=envelope.id_text,
        kind=notice.due.kind,
        reverse_path=str(notice.report.forward_path),
        recipients=len(notice.due.results),
    )


def _tell_silence(envelope: Envelope, results: Results) -> None:
    """A failure that nobody will hear of is on record at least."""
    if not envelope.reverse_path.is_null:
        return  # NOTIFY asked for silence
    for index, outcome in results:
        if isinstance(outcome, Failed):
            log.warning(
                "undeliverable-notice-dropped",
                queue_id=envelope.id_text,
                forward_path=str(envelope.recipients[index].forward_path),
                reason=outcome.reason.slug,
                reply=outcome.diagnostic,
            )
