"""Transactions over one open channel, the next one's MAIL, RCPT and DATA written behind the final dot of the one before.

With PIPELINING a message costs one write and one wait: its content and final dot leave together with the opening of the next
transaction (RFC 2920), and both are answered in order. Without it each command waits for its reply. A recipient is settled
exactly once, by the reply that decides it or by the loss of the next hop; what was not begun when a used connection ended is
carried to the next connection.
"""

import collections
import enum
import os
from collections.abc import Sequence
from pathlib import Path

from posthouse.mail.header import HEADER_LIMIT, header_of, header_of_pieces
from posthouse.mail.message import Content, Message
from posthouse.mail.outcome import Deferred, Failed, Outcome
from posthouse.mail.reason import Reason, Slug
from posthouse.mail.status import Stage, asks_for_fewer_recipients
from posthouse.net.client import ClientChannel, Loss, PeerLost
from posthouse.smtp.address import Path as MailPath
from posthouse.smtp.client import CannotBeSaid
from posthouse.smtp.event import NO_RCPT_PARAMETERS, BodyType, MailParameters, Notify, RcptParameters, Verb
from posthouse.smtp.reply import Reply
from posthouse.transports.api import Attempt, Feed
from posthouse.transports.verdict import lost, refused, said, taken


class Job:
    """An attempt on its way: which of its recipients are settled, and how. Reports when the last one is."""

    __slots__ = ("_feed", "_open", "_outcomes", "attempt", "was_carried")

    def __init__(self, attempt: Attempt, feed: Feed) -> None:
        self.attempt = attempt
        self.was_carried = False
        self._feed = feed
        self._open = len(attempt.indices)
        self._outcomes: list[Outcome | None] = [None] * self._open

    @property
    def unsettled(self) -> list[int]:
        """Positions in `attempt.indices` that have no outcome yet."""
        return [position for position, outcome in enumerate(self._outcomes) if outcome is None]

    @property
    def is_settled(self) -> bool:
        """It has been reported."""
        return not self._open

    def settle(self, positions: Sequence[int], outcome: Outcome) -> None:
        """The same outcome for some recipients; each is settled once."""
        for position in positions:
            self._outcomes[position] = outcome
        self._open -= len(positions)
        if not self._open:
            self._feed.report(self.attempt, [outcome for outcome in self._outcomes if outcome is not None])


class Progress(enum.Enum):
    """How far a transaction has come."""

    PLANNED = "planned"
    OPENED = "opened"  # MAIL at least is written
    CONTENT = "content"  # 354 was said, content is being written
    SENT = "sent"  # the final dot is written
    DONE = "done"


class Transaction:
    """Some recipients of a job, as one MAIL."""

    __slots__ = ("accepted", "begins_with_rset", "job", "positions", "progress")

    def __init__(self, job: Job, positions: list[int]) -> None:
        self.job = job
        self.positions = positions
        self.accepted: list[int] = []
        self.progress = Progress.PLANNED
        self.begins_with_rset = False


class Session:
    """One channel in use. `carried` holds the jobs that an earlier connection left over; they come first."""

    def __init__(
        self,
        channel: ClientChannel,
        remote: str,
        feed: Feed,
        carried: collections.deque[Job],
        *,
        recipients: int,
        messages: int = 0,
    ) -> None:
        """`recipients`: most in a transaction; `messages`: most on the connection, 0 for no limit of ours."""
        self.completed = 0
        """Transactions that ended with an answer."""
        self._channel = channel
        self._engine = channel.engine
        self._remote = remote
        self._feed = feed
        self._carried = carried
        offers = channel.engine.offers
        self._offers = offers
        self._is_lmtp = channel.engine.dialect is Verb.LHLO
        self._recipients = _least(recipients, offers.limits.rcpt_max)
        self._messages = _least(messages, offers.limits.mail_max)
        self._planned: collections.deque[Transaction] = collections.deque()
        self._needs_rset = False
        self._opened = 0

    @property
    def is_used_up(self) -> bool:
        """No more messages go over this connection (MAILMAX of RFC 9422, or a limit of ours)."""
        return bool(self._messages) and self._opened >= self._messages

    async def deliver(self) -> PeerLost | None:
        """Delivers until nothing waits, or the connection is used up: None; or the loss, after which all is settled or carried."""
        current: Transaction | None = None
        following: Transaction | None = None
        try:
            while True:
                current, following = following or self._next(), None
                if current is None:
                    return None
                if not self._offers.pipelining:
                    if await self._open_step_by_step(current):
                        await self._write_content(current)
                        await self._channel.flush()
                        await self._read_fate(current)
                    continue
                if current.progress is Progress.PLANNED:
                    self._write_opening(current)
                    await self._channel.flush()
                if await self._read_opening(current):
                    await self._write_content(current)
                    following = self._next()
                    if following is not None:
                        self._write_opening(following)
                    await self._channel.flush()
                    await self._read_fate(current)
        except PeerLost as error:
            peer_lost = error
        except CannotBeSaid as error:
            peer_lost = self._unspeakable(following or current, error)
        for transaction in (current, following, *self._planned):
            if transaction is not None and transaction.progress is not Progress.DONE:
                self._settle_lost(transaction, peer_lost)
        return peer_lost

    def _unspeakable(self, transaction: Transaction | None, error: CannotBeSaid) -> PeerLost:
        """A path that can't be written as a command ends its job, and the connection, where half of it may have been said."""
        if transaction is not None and not transaction.job.is_settled:
            words = (
                f"the envelope cannot be said to {self._remote}: {error}; correct the address or the route that made it"
            )
            outcome = Failed("5.1.3", Reason(Slug.ADDRESS_UNUSABLE, words))
            transaction.job.settle(transaction.job.unsettled, outcome)
        self._channel.abort()
        return PeerLost(Loss.CLOSED, "was left: there was something that cannot be said")

    # --- what comes next

    def _next(self) -> Transaction | None:
        """The next transaction; attempts that this next hop can't be given are settled on the way."""
        if self.is_used_up:
            return None
        while not self._planned:
            if self._carried:
                job = self._carried.popleft()
            else:
                attempt = self._feed.take()
                if attempt is None:
                    return None
                if not attempt.indices:
                    self._feed.report(attempt, [])
                    continue
                job = Job(attempt, self._feed)
            self._plan(job)
        self._opened += 1
        return self._planned.popleft()

    def _plan(self, job: Job) -> None:
        """Cuts a job into transactions; settles what this next hop can't be given."""
        offers = self._offers
        attempt = job.attempt
        message = attempt.message
        if offers.size_limit and message.size_bytes > offers.size_limit:
            words = f"{self._remote} takes at most {offers.size_limit} octets, and the message has {message.size_bytes}"
            job.settle(job.unsettled, Failed("5.3.4", Reason(Slug.NEXT_HOP_REFUSED, words), self._remote))
            return
        if message.content.is_8bit and not offers.eight_bit_mime:
            words = (
                f"{self._remote} does not offer 8BITMIME, and the message has 8-bit content, which is never rewritten"
            )
            job.settle(job.unsettled, Failed("5.6.3", Reason(Slug.NEEDS_8BITMIME, words), self._remote))
            return
        if not offers.smtputf8:
            needy = needing_smtputf8(attempt, job.unsettled)
            if needy:
                words = f"{self._remote} does not offer SMTPUTF8, and an address or the header is not ASCII"
                job.settle(needy, Failed("5.6.7", Reason(Slug.NEEDS_SMTPUTF8, words), self._remote))
        positions, most = job.unsettled, self._recipients
        self._planned.extend(Transaction(job, positions[i : i + most]) for i in range(0, len(positions), most))

    # --- writing

    def _write_mail(self, transaction: Transaction) -> bool:
        """Writes MAIL; returns whether the transaction speaks SMTPUTF8."""
        attempt = transaction.job.attempt
        envelope, content = attempt.envelope, attempt.message.content
        offers = self._offers
        smtputf8 = offers.smtputf8 and (
            envelope.smtputf8
            or not attempt.reverse_path.local_part.isascii()
            or any(not _forward_path(attempt, position).local_part.isascii() for position in transaction.positions)
        )
        is_8bit = offers.eight_bit_mime and (content.is_8bit or envelope.body is BodyType.EIGHT_BIT_MIME)
        parameters = MailParameters(
            attempt.message.size_bytes,
            BodyType.EIGHT_BIT_MIME if is_8bit else BodyType.SEVEN_BIT,
            smtputf8,
            envelope.ret,
            envelope.envelope_id,
        )
        self._engine.mail(attempt.reverse_path, parameters)
        return smtputf8

    def _write_rcpt(self, transaction: Transaction, position: int, *, smtputf8: bool) -> None:
        attempt = transaction.job.attempt
        recipient = attempt.envelope.recipients[attempt.indices[position]]
        parameters = NO_RCPT_PARAMETERS
        if recipient.notify is not Notify.DEFAULT or recipient.original_recipient:
            parameters = RcptParameters(recipient.notify, recipient.original_recipient)
        self._engine.rcpt(recipient.forward_path, parameters, smtputf8=smtputf8)

    def _write_opening(self, transaction: Transaction) -> None:
        """All of a transaction's commands in one group (RFC 2920), with a RSET in front where the last one was left open."""
        transaction.begins_with_rset, self._needs_rset = self._needs_rset, False
        if transaction.begins_with_rset:
            self._engine.rset()
        transaction.progress = Progress.OPENED
        smtputf8 = self._write_mail(transaction)
        for position in transaction.positions:
            self._write_rcpt(transaction, position, smtputf8=smtputf8)
        self._engine.data()

    async def _write_content(self, transaction: Transaction) -> None:
        """Content and final dot; a large one is sent on the way, the rest waits for the flush."""
        transaction.progress = Progress.CONTENT
        message = transaction.job.attempt.message
        content: Content = message.content
        engine = self._engine
        engine.content((message.trace,), content.dots)
        if content.file is None:
            engine.content(content.pieces, content.dots)
        else:
            try:
                file = content.file
                await self._channel.send_file(file.path, file.offset, file.length, content.dots, file.checksum)
            except OSError as error:
                words = (
                    f"the content cannot be read from the spool ({error}); look at the disk and at `posthouse queue`"
                )
                self._settle_accepted(transaction, Deferred("4.3.0", Reason(Slug.CONTENT_DAMAGED, words)))
                raise PeerLost(Loss.CLOSED, "was left in the middle of a message") from error
        engine.end_content()
        transaction.progress = Progress.SENT

    # --- reading

    async def _reply(self) -> Reply:
        reply = (self._channel.next_answer() or await self._channel.answer()).reply
        if reply.code == 421:
            raise PeerLost(Loss.FAREWELL, f"closed the session: {said(reply)}", reply)
        return reply

    async def _open_step_by_step(self, transaction: Transaction) -> bool:
        """As `_read_opening`, for a server that takes one command at a time."""
        channel, engine = self._channel, self._engine
        if self._needs_rset:
            self._needs_rset = False
            engine.rset()
            await channel.flush()
            await self._reply()
        transaction.progress = Progress.OPENED
        smtputf8 = self._write_mail(transaction)
        await channel.flush()
        reply = await self._reply()
        if not reply.is_positive:
            transaction.job.settle(transaction.positions, refused(reply, Stage.MAIL, self._remote))
            self._done(transaction)
            return False
        remaining = list(transaction.positions)
        for position in transaction.positions:
            self._write_rcpt(transaction, position, smtputf8=smtputf8)
            await channel.flush()
            reply = await self._reply()
            remaining.remove(position)
            self._hear_rcpt(transaction, position, reply)
        if not transaction.accepted:
            self._needs_rset = True
            self._done(transaction)
            return False
        engine.data()
        await channel.flush()
        return await self._hear_data(transaction, await self._reply(), mail_was_taken=True)

    async def _read_opening(self, transaction: Transaction) -> bool:
        """Reads the replies to a group; True when content is to follow, otherwise the transaction is over."""
        if transaction.begins_with_rset:
            await self._reply()
        mail = await self._reply()
        for position in transaction.positions:
            reply = await self._reply()
            if mail.is_positive:
                self._hear_rcpt(transaction, position, reply)
        if not mail.is_positive:
            transaction.job.settle(transaction.positions, refused(mail, Stage.MAIL, self._remote))
        return await self._hear_data(transaction, await self._reply(), mail_was_taken=mail.is_positive)

    def _hear_rcpt(self, transaction: Transaction, position: int, reply: Reply) -> None:
        if reply.is_positive:
            transaction.accepted.append(position)
        elif transaction.accepted and asks_for_fewer_recipients(reply):
            # RFC 5321 4.5.3.1.10: the rest goes in another transaction, at once.
            planned = self._planned
            if planned and planned[0].job is transaction.job and planned[0].progress is Progress.PLANNED:
                planned[0].positions.append(position)
            else:
                planned.appendleft(Transaction(transaction.job, [position]))
        else:
            transaction.job.settle([position], refused(reply, Stage.RCPT, self._remote))

    async def _hear_data(self, transaction: Transaction, reply: Reply, *, mail_was_taken: bool) -> bool:
        accepted = transaction.accepted
        if reply.is_positive and accepted:
            return True
        if reply.is_positive:
            await self._send_nothing()
        else:
            self._needs_rset = mail_was_taken
            self._settle_accepted(transaction, refused(reply, Stage.DATA, self._remote))
        self._done(transaction)
        return False

    async def _send_nothing(self) -> None:
        """354 though no recipient was taken (RFC 2920 3.1 foresees it): an empty message to nobody, its fate is no one's."""
        if self._is_lmtp:
            raise PeerLost(Loss.BROKEN, "wants a message for no recipients")  # nobody can say how many replies follow
        self._engine.end_content()
        await self._channel.flush()
        await self._reply()

    async def _read_fate(self, transaction: Transaction) -> None:
        """The reply after the final dot: one for all, or one for each recipient (RFC 2033 4.2)."""
        if self._is_lmtp:
            for position in tuple(transaction.accepted):
                reply = await self._reply()
                transaction.accepted.remove(position)
                transaction.job.settle([position], self._fate(reply))
        else:
            reply = await self._reply()
            self._settle_accepted(transaction, self._fate(reply))
        self._done(transaction)

    def _fate(self, reply: Reply) -> Outcome:
        if reply.is_positive:
            return taken(reply, self._remote, is_final=self._is_lmtp, speaks_dsn=self._offers.dsn)
        return refused(reply, Stage.CONTENT, self._remote)

    # --- settling

    def _settle_accepted(self, transaction: Transaction, outcome: Outcome) -> None:
        accepted, transaction.accepted = transaction.accepted, []
        if accepted:
            transaction.job.settle(accepted, outcome)

    def _done(self, transaction: Transaction) -> None:
        transaction.progress = Progress.DONE
        self.completed += 1

    def _settle_lost(self, transaction: Transaction, peer_lost: PeerLost) -> None:
        job, progress = transaction.job, transaction.progress
        unsettled = set(job.unsettled)
        positions = [position for position in transaction.positions if position in unsettled]
        transaction.progress = Progress.DONE
        if not positions or job in self._carried:
            return
        if progress is Progress.CONTENT and (reply := self._channel.early_refusal()) is not None:
            job.settle(positions, refused(reply, Stage.CONTENT, self._remote))
        elif progress in {Progress.PLANNED, Progress.OPENED} and self._may_be_carried(job, peer_lost):
            job.was_carried = True
            self._carried.append(job)
        else:
            job.settle(positions, lost(peer_lost, self._remote, content_was_sent=progress is Progress.SENT))

    def _may_be_carried(self, job: Job, peer_lost: PeerLost) -> bool:
        """A server that ends a connection it has served (an idle or session limit, most likely) is asked again at once, once."""
        return self.completed > 0 and not job.was_carried and peer_lost.loss in {Loss.CLOSED, Loss.FAREWELL}


def _least(ours: int, theirs: int) -> int:
    """The stricter of two limits, where 0 is none."""
    return min(ours, theirs) if ours and theirs else ours or theirs


def needing_smtputf8(attempt: Attempt, positions: Sequence[int]) -> list[int]:
    """The recipients that can't be served without SMTPUTF8 (RFC 6531 3.2): all of them when the header or sender needs it."""
    if not attempt.reverse_path.local_part.isascii():
        return list(positions)
    if attempt.envelope.smtputf8 and not _header_is_ascii(attempt.message):
        return list(positions)
    return [position for position in positions if not _forward_path(attempt, position).local_part.isascii()]


def _header_is_ascii(message: Message) -> bool:
    if not message.trace.isascii():
        return False
    content = message.content
    if not content.is_8bit:
        return True
    if content.file is None:
        return header_of_pieces(content.pieces).isascii()
    try:
        with Path(content.file.path).open("rb") as file:
            start = os.pread(file.fileno(), min(content.file.length, HEADER_LIMIT), content.file.offset)
    except OSError:
        return False  # not learnable, so taken for the worse
    return header_of(start).isascii()


def _forward_path(attempt: Attempt, position: int) -> MailPath:
    return attempt.envelope.recipients[attempt.indices[position]].forward_path
