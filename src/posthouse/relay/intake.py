"""The only way in: an envelope whose recipients each carry a grant, and a message, become durable together.

Sessions, the local socket and our own notifications all come through here; nothing else calls `Spool.accept`.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec

from posthouse.mail.envelope import Envelope, Origin, Recipient
from posthouse.mail.message import Content, Message
from posthouse.observe import log, metrics
from posthouse.smtp.address import Path
from posthouse.smtp.event import MailParameters
from posthouse.spool.api import Clock, ContentSink, Spool, SpoolError

Accepted = Callable[[Envelope, SpoolError | None], None]
"""Called in the loop once the message is on disk (None), or is not and will not be (why)."""


class Draft(msgspec.Struct, frozen=True):
    """A message ready to be taken in: all but its queue id's fate. `recipients` have been expanded through the aliases."""

    reverse_path: Path
    recipients: tuple[Recipient, ...]
    origin: Origin
    parameters: MailParameters


class Onward(Protocol):
    """Who sees to what is durable: the scheduler."""

    def add(self, envelope: Envelope, message: Message) -> None:
        """A message has been accepted."""


class Intake:
    """Takes mail in for one shard and hands what is durable to the scheduler."""

    def __init__(self, spool: Spool, scheduler: Onward, clock: Clock) -> None:
        self.spool = spool
        self._scheduler = scheduler
        self._clock = clock
        self.arriving = 0
        """Octets of contents that clients are still sending and that memory holds, all sessions together."""

    def room_for(self, size_bytes: int) -> SpoolError | None:
        """None when a message of that size may come, else why not."""
        return self.spool.room_for(size_bytes)

    def new_queue_id(self) -> int:
        """An id for a message to come; the trace field names it before the message is stored."""
        return self.spool.new_queue_id()

    def open_sink(self, queue_id: int) -> ContentSink:
        """A place on disk for a content too large for memory."""
        return self.spool.open_sink(queue_id)

    def take_in(self, queue_id: int, draft: Draft, trace: bytes, content: Content, accepted: Accepted) -> None:
        """Makes a message durable, then tells `accepted`, then lets the scheduler have it."""
        parameters = draft.parameters
        envelope = Envelope(
            queue_id,
            draft.reverse_path,
            draft.recipients,
            draft.origin,
            self._clock(),
            parameters.body,
            parameters.smtputf8,
            parameters.ret,
            parameters.envelope_id,
        )
        message = Message(trace, content)

        def durable(error: SpoolError | None, /) -> None:
            if error is None:
                _tell_accepted(envelope, message)
                accepted(envelope, None)
                self._scheduler.add(envelope, message)
            else:
                log.warning("not-accepted", queue_id=envelope.id_text, error=type(error).__name__, words=str(error))
                accepted(envelope, error)

        self.spool.accept(envelope, message, durable)


def _tell_accepted(envelope: Envelope, message: Message) -> None:
    metrics.messages_accepted.inc()
    metrics.recipients_accepted.inc(len(envelope.recipients))
    metrics.bytes_accepted.inc(message.size_bytes)
    origin = envelope.origin
    log.info(
        "accepted",
        queue_id=envelope.id_text,
        client=origin.client,
        login=origin.login,
        uid=origin.local_uid if origin.local_uid >= 0 else None,
        protocol=origin.protocol,
        size=message.size_bytes,
        recipients=len(envelope.recipients),
        grant=envelope.recipients[0].grant.kind,
    )
