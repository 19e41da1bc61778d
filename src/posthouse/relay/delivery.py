"""From outcomes to fates: what an attempt brought is recorded, put off or bounced.

A failed recipient leaves the queue only after the notice to its sender is itself durable.
"""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from posthouse.mail.envelope import Envelope, queue_id_text, shard_of
from posthouse.mail.message import Message
from posthouse.mail.outcome import Deferred, Delivered, Failed, Outcome, Relayed
from posthouse.mail.reason import Reason, Slug
from posthouse.observe import log, metrics
from posthouse.relay.backoff import RetryPlan, is_expired, is_notice_due, wait_after
from posthouse.relay.scheduler import Scheduler
from posthouse.relay.site import Parcel
from posthouse.smtp.event import Notify
from posthouse.spool.api import Clock, Done, Fate, Retry
from posthouse.transports.api import Attempt

Results = Sequence[tuple[int, Outcome]]
"""Recipients by their index in the envelope, each with what became of it."""


class Notices(Protocol):
    """Tells senders what became of their mail (see relay.bounce)."""

    def send(
        self, envelope: Envelope, message: Message, results: Results, retry_until: int, done: Callable[[], None]
    ) -> None:
        """Sends the notices that these results call for: `done` is called once they are durable, or none is owed.

        Failed → failure, Deferred → delay, Relayed and Delivered → success, where NOTIFY asks for it.
        """


class Delivery:
    """Settles what attempts bring: the scheduler's `settle`."""

    def __init__(self, scheduler: Scheduler, notices: Notices, retry: RetryPlan, clock: Clock) -> None:
        self.retry = retry
        self._scheduler = scheduler
        self._notices = notices
        self._clock = clock

    def settle(self, parcel: Parcel, attempt: Attempt, outcomes: Sequence[Outcome]) -> None:
        """Records the outcomes of an attempt, sends the notices they call for, and lets go of the parcel."""
        envelope = attempt.envelope
        now = self._clock()
        attempts = parcel.attempts + 1
        fates: list[Fate] = []
        owed: list[tuple[int, Outcome]] = []
        last: list[Fate] = []
        for index, outcome in zip(attempt.indices, outcomes, strict=True):
            if isinstance(outcome, Deferred):
                outcome = self._expire(parcel, outcome, now)  # noqa: PLW2901 - from here on it is what it has become
            _tell(parcel, envelope, index, outcome, now)
            if isinstance(outcome, Deferred):
                fate, is_notice = self._put_off(parcel, index, outcome, attempts, now)
                fates.append(fate)
                if is_notice:
                    owed.append((index, outcome))
            else:
                fate = Fate(parcel.queue_id, index, outcome, Done(), attempts, now)
                if isinstance(outcome, Failed):
                    owed.append((index, outcome))
                    last.append(fate)
                else:
                    if Notify.SUCCESS in envelope.recipients[index].notify:
                        owed.append((index, outcome))
                    fates.append(fate)
        spool = self._scheduler.spools[shard_of(parcel.queue_id)]
        if fates:
            spool.record(fates, at_once=bool(owed))
        if not owed:
            self._scheduler.forget(parcel)
            return

        def told() -> None:
            if last:
                spool.record(last, at_once=True)
            self._scheduler.forget(parcel)

        self._notices.send(envelope, attempt.message, owed, self._retry_until(parcel), told)

    def _expire(self, parcel: Parcel, outcome: Deferred, now: int) -> Deferred | Failed:
        if not is_expired(parcel.arrived_at, now, self.retry):
            return outcome
        days = self.retry.give_up / 86400
        words = f"given up after {days:.3g} days of trying; the last trouble was: {outcome.reason.words}"
        return Failed("5.4.7", Reason(Slug.EXPIRED, words), outcome.remote, outcome.diagnostic)

    def _put_off(self, parcel: Parcel, index: int, outcome: Deferred, attempts: int, now: int) -> tuple[Fate, bool]:
        next_at = now + int(wait_after(attempts, self.retry, random.random()) * 1000)  # noqa: S311 - jitter
        next_at = min(next_at, max(self._retry_until(parcel), now + 1000))
        notices = parcel.notices
        is_notice = is_notice_due(parcel.arrived_at, now, notices, self.retry)
        self._scheduler.wake(parcel.destination, next_at)
        fate = Fate(parcel.queue_id, index, outcome, Retry(next_at, notices + is_notice), attempts, now)
        return fate, is_notice

    def _retry_until(self, parcel: Parcel) -> int:
        return parcel.arrived_at + int(self.retry.give_up * 1000)


_EVENTS: dict[type[Outcome], str] = {Relayed: "relayed", Delivered: "delivered", Deferred: "deferred", Failed: "failed"}


def _tell(parcel: Parcel, envelope: Envelope, index: int, outcome: Outcome, now: int) -> None:
    event = _EVENTS[type(outcome)]
    metrics.attempts.inc((event, metrics.destination_names.name(parcel.destination)))
    metrics.outcomes.inc(outcome.reason.slug)
    if isinstance(outcome, Relayed | Delivered):
        metrics.delivery_seconds.observe((now - parcel.arrived_at) / 1000)
    log.info(
        event,
        queue_id=queue_id_text(parcel.queue_id),
        forward_path=str(envelope.recipients[index].forward_path),
        remote=outcome.remote,
        status=outcome.status,
        reason=outcome.reason.slug,
        reply=outcome.diagnostic,
        attempts=parcel.attempts + 1,
        delay=(now - parcel.arrived_at) / 1000,
    )
