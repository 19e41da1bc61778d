"""One inbound connection: gathers facts, asks policy, hands drafts to the intake. It knows no grammar, no socket, no storage.

`net.connection` drives it with the engine's events; tests drive it in memory with the same events.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Protocol

import msgspec

from posthouse.mail.envelope import Envelope, Origin, Recipient, queue_id_text
from posthouse.mail.grant import Grant
from posthouse.mail.header import count_received, header_of
from posthouse.mail.message import Content
from posthouse.mail.reason import Reason, Slug
from posthouse.mail.trace import TraceWriter, protocol_keyword
from posthouse.observe import log, metrics
from posthouse.policy.decide import Deferral, Need, Refusal, decide, expand, lab_over
from posthouse.policy.facts import ClientAddress, Facts, Role, Unknown
from posthouse.policy.networks import parse_address
from posthouse.policy.rules import Rules
from posthouse.relay.intake import Draft, Intake
from posthouse.smtp.address import Path
from posthouse.smtp.event import (
    CommandRefused,
    ContentBroken,
    ContentComplete,
    ContentPiece,
    ContentWanted,
    Credentials,
    Event,
    Greeted,
    MailFrom,
    RcptTo,
    TransactionReset,
    Verb,
)
from posthouse.smtp.reply import Reply
from posthouse.smtp.server import CONTENT_WELCOME, ServerConnection
from posthouse.spool.api import Clock, ContentSink, SpoolError, SpoolFull

SPILL_OCTETS = 512 * 1024
"""A content larger than this goes to a file of its own as it arrives, so that memory stays bounded whatever clients send. Smaller
ones share a file and its sync, and are delivered from memory: 100 KB then cost half."""

MOST_ARRIVING = 64 * 1024 * 1024
"""Octets of unfinished contents that memory may hold for all clients together; beyond, even small ones go to disk."""

ECHO_MARK = ".echo."
"""An EHLO name that holds it may be an outside test's, which says what address the client really has."""

_CIRCLE = Reason(
    Slug.MAIL_LOOP,
    "This message has passed too many servers and goes round in circles; a postmaster on its way must mend that",
)
_SENDER_OK = Reply(250, "2.1.0", ("Sender OK",))
_RECIPIENT_OK = Reply(250, "2.1.5", ("Recipient OK",))
_LOGGED_IN = Reply(235, "2.7.0", ("Authentication succeeded",))
_LOGIN_REFUSED = Reply(535, "5.7.8", ("Authentication failed: login or password is wrong",))
_NO_ACCOUNTS = Reply(454, "4.7.0", ("Authentication is not available now",))


class Peer(Protocol):
    """Who is at the other end (see net.server.Peer)."""

    @property
    def address(self) -> str:
        """The address after PROXY."""

    @property
    def port(self) -> int:
        """The port after PROXY."""

    @property
    def uid(self) -> int:
        """The caller's uid on the local socket, else -1."""

    @property
    def is_address_known(self) -> bool:
        """False when a proxy would not say."""


class Line(Protocol):
    """What a session asks of the driver that brings its events."""

    def answer(self, reply: Reply) -> None:
        """The reply that `handle` did not have at once."""

    def cut(self, why: str) -> None:
        """End the connection with a 421, whatever it waits for."""

    def pause(self) -> None:
        """Stop reading the client."""

    def resume(self) -> None:
        """Read the client again."""


class Verified(msgspec.Struct, frozen=True):
    """What became of a login: it is who it says (`is_right`), or not; or ask again in `retry_after` seconds (> 0).

    `unavailable` is why nobody can tell now, for the client; "" when somebody can.
    """

    is_right: bool
    retry_after: float = 0.0
    unavailable: str = ""


Verify = Callable[[str, str, str], Awaitable[Verified]]
"""(login, password, client address) -> Verified, off the event loop where it is slow."""


Witness = Callable[[str, ClientAddress], bool]
"""Told the EHLO name and the address of a client that may carry an echo (tester.echo). True: it is the server's own
self-test, of which nothing is logged or counted."""


class Desk(msgspec.Struct):
    """What the sessions of one listener share. Mutable on purpose: a reload replaces `rules` for the next recipient."""

    role: Role
    hostname: str
    listener: str
    intake: Intake
    rules: Rules
    clock: Clock
    verify: Verify | None = None
    most_hops: int = 100
    most_messages: int = 1000
    witness: Witness | None = None
    lab: str = ""
    """The name of its window, on a lab listener."""


class _Transaction:
    """A message on its way in, from MAIL to its reply."""

    __slots__ = (
        "accepted",
        "draft_parameters",
        "failure",
        "held",
        "pieces",
        "queue_id",
        "recipients",
        "reverse_path",
        "sink",
        "size",
    )

    def __init__(self, event: MailFrom) -> None:
        self.reverse_path = event.reverse_path
        self.draft_parameters = event.parameters
        self.recipients: dict[Path, Recipient] = {}
        self.accepted = 0
        self.pieces: list[bytes] = []
        self.size = 0
        self.held = 0  # octets of it that `Intake.arriving` counts
        self.queue_id = 0
        self.sink: ContentSink | None = None
        self.failure: SpoolError | None = None


class Session:
    """The handler of one connection (net.server.Handler)."""

    def __init__(self, desk: Desk, line: Line, engine: ServerConnection) -> None:
        self.engine = engine
        self._desk = desk
        self._line = line
        self._client: ClientAddress = Unknown.NOT_YET
        self._client_text = ""
        self._port = 0
        self._uid = -1
        self._login = ""
        self._tls = ""
        self._hello_name = ""
        self._verb = Verb.HELO
        self._origin: Origin | None = None
        self._origin_utf8 = False
        self._trace: TraceWriter | None = None
        self._transaction: _Transaction | None = None
        self._messages = 0
        self._verifying: asyncio.Task[None] | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._is_counted = False
        self._is_rehearsal = False
        self._is_gone = False

    # The driver's side (net.server.Handler).

    def connected(self, peer: Peer) -> Reply | None:
        """Who calls; None: greet with the engine's banner."""
        self._client_text, self._port, self._uid = peer.address, peer.port, peer.uid
        if peer.address and peer.is_address_known:
            self._client = parse_address(peer.address)
        else:
            self._client = Unknown.NOT_LEARNABLE
        # A password may come in the clear only from this machine itself (contract of `submission`, RFC 4954 4).
        self.engine.allow_auth_in_clear(allowed=not isinstance(self._client, Unknown) and self._client.is_loopback)
        rules = self._desk.rules
        if self._is_trusted():
            self.engine.limit(mail_max=0, rcpt_max=rules.recipients_trusted)
        else:
            self.engine.limit(mail_max=self._desk.most_messages, rcpt_max=rules.recipients_stranger)
        self._is_counted = True
        metrics.sessions.inc(self._desk.listener)
        metrics.sessions_open.inc(self._desk.listener)
        log.debug("connected", client=self._client_text, listener=self._desk.listener)
        return self._lab_refusal() if self._desk.role is Role.LAB else None

    def _lab_refusal(self) -> Reply | None:
        """After its end a lab does not even greet."""
        desk = self._desk
        lab = desk.rules.lab(desk.lab)
        if lab is not None and not lab.is_over(desk.clock() / 1000):
            return None
        words = lab_over(lab.until).reason.words if lab is not None else "There is no lab here any more"
        return Reply(554, "", (words,))

    def _is_trusted(self) -> bool:
        """May relay by its address or uid: not a stranger who might wear us out."""
        desk = self._desk
        return desk.role is Role.LOCAL or (desk.role is Role.RELAY and desk.rules.trusts(self._client))

    def tls_started(self, description: str) -> None:
        """TLS is up: what was learned in the clear is forgotten (RFC 3207 4.2)."""
        self._tls = description
        self._login = ""
        self._hello_name = ""
        self._drop_transaction()
        self._trace = None

    def handle(self, event: Event) -> Reply | None:
        """An event of the engine; the reply if it is known at once."""
        handler = _HANDLERS.get(type(event))
        return handler(self, event) if handler is not None else None

    def closed(self) -> None:
        """The connection is gone, perhaps before it was a session: an unfinished message goes with it, one being stored does not."""
        self._is_gone = True
        self._drop_transaction()
        if self._verifying is not None:
            self._verifying.cancel()
        if self._is_counted:
            metrics.sessions_open.dec(self._desk.listener)

    # Events.

    def _greeted(self, event: Greeted) -> None:
        self._verb, self._hello_name = event.verb, event.hello_name
        if self._desk.witness is not None and ECHO_MARK in event.hello_name.lower():
            self._begin_rehearsal(self._desk.witness(event.hello_name, self._client))
        self._drop_transaction()
        self._trace = None

    def _begin_rehearsal(self, is_own_test: bool) -> None:
        if is_own_test and not self._is_rehearsal:
            self._is_rehearsal = True
            metrics.sessions.inc(self._desk.listener, -1)  # it was no client's

    def _refused(self, event: CommandRefused) -> None:
        if self._is_rehearsal:
            return
        metrics.commands_refused.inc(str(event.reply.code))
        log.info(
            "command-refused",
            client=self._client_text,
            command=event.command.decode("utf-8", "replace")[:80],
            reply=str(event.reply),
        )

    def _reset(self, _event: TransactionReset) -> None:
        self._drop_transaction()

    def _mail(self, event: MailFrom) -> Reply:
        self._drop_transaction()
        desk = self._desk
        full = desk.intake.room_for(event.parameters.size_bytes)
        if full is not None:
            return _reply_for(full)
        self._transaction = _Transaction(event)
        return _SENDER_OK

    def _rcpt(self, event: RcptTo) -> Reply:
        transaction = self._transaction
        if transaction is None:
            return Reply(503, "5.5.1", ("MAIL comes first",))
        path = event.forward_path
        rules = self._desk.rules  # those of now: `posthouse relay off` counts at once
        desk = self._desk
        facts = Facts(desk.role, self._client, path, self._login, self._uid, transaction.accepted)
        if desk.role is Role.LAB:
            facts = msgspec.structs.replace(facts, lab=desk.lab, now=desk.clock() / 1000)
        answer = decide(facts, rules)
        if type(answer) is not Grant:
            return self._no(path, answer)
        if not self._is_rehearsal:
            metrics.decisions.inc(answer.reason.slug)
        expanded = expand(path, answer, rules)
        if not isinstance(expanded, tuple):
            return self._no(path, expanded)
        transaction.accepted += 1
        parameters = event.parameters
        for target, grant in expanded:
            if target not in transaction.recipients:
                original = parameters.original_recipient
                if target != path and not original:  # a notice names what the sender wrote, not where it leads
                    original = f"{'rfc822' if path.is_ascii else 'utf-8'};{path}"
                transaction.recipients[target] = Recipient(target, grant, parameters.notify, original)
        return _RECIPIENT_OK

    def _no(self, path: Path, answer: Refusal | Deferral | Need | Grant) -> Reply:
        if not isinstance(answer, Refusal | Deferral):  # a fact still missing here can't be had: closed when in doubt
            return Reply(451, "4.7.1", ("It is not known who you are; try again later",))
        if self._is_rehearsal:
            return answer.reply
        metrics.decisions.inc(answer.reason.slug)
        log.info(
            "recipient-refused",
            client=self._client_text,
            login=self._login or None,
            forward_path=str(path),
            reason=answer.reason.slug,
            reply=str(answer.reply),
        )
        self._desk.intake.spool.note_refusal(self._client_text, self._login, answer.reason.slug)
        return answer.reply

    def _content_wanted(self, event: ContentWanted) -> Reply:
        transaction = self._transaction
        if transaction is None or not transaction.recipients:
            return Reply(503, "5.5.1", ("RCPT comes first",))
        declared = max(event.declared_bytes, transaction.draft_parameters.size_bytes)
        full = self._desk.intake.room_for(declared)
        if full is not None:
            self._drop_transaction()
            return _reply_for(full)
        transaction.queue_id = self._desk.intake.new_queue_id()
        return CONTENT_WELCOME

    def _piece(self, event: ContentPiece) -> None:
        transaction = self._transaction
        if transaction is None or transaction.failure is not None:
            return
        data = event.data
        transaction.size += len(data)
        try:
            if transaction.sink is not None:
                transaction.sink.write(data)
            else:
                transaction.pieces.append(data)
                transaction.held += len(data)
                intake = self._desk.intake
                intake.arriving += len(data)
                if transaction.size > SPILL_OCTETS or intake.arriving > MOST_ARRIVING:
                    self._spill(transaction)
        except SpoolError as error:
            self._fail(transaction, error)
            return
        if transaction.sink is not None and transaction.sink.is_congested and self._draining is None:
            self._line.pause()
            self._draining = self._begin(self._resume_when_drained(transaction, transaction.sink))

    def _spill(self, transaction: _Transaction) -> None:
        """The content has outgrown memory: all of it goes to disk, but its header is kept for the hop count."""
        sink = self._desk.intake.open_sink(transaction.queue_id)
        transaction.sink = sink
        octets = b"".join(transaction.pieces)
        transaction.pieces = [header_of(octets)]
        self._let_go(transaction)
        sink.write(octets)

    def _let_go(self, transaction: _Transaction) -> None:
        """The content is no longer arriving in memory."""
        self._desk.intake.arriving -= transaction.held
        transaction.held = 0

    def _fail(self, transaction: _Transaction, error: SpoolError) -> None:
        """The content can't be kept: what is still to come of it is not, and its end is answered with the cause."""
        self._end_draining()
        transaction.failure = error
        transaction.pieces.clear()
        self._let_go(transaction)
        if transaction.sink is not None:
            transaction.sink.abandon()
            transaction.sink = None

    async def _resume_when_drained(self, transaction: _Transaction, sink: ContentSink) -> None:
        try:
            await sink.drained()
        except SpoolError as error:
            self._draining = None
            self._fail(transaction, error)
        self._draining = None
        self._line.resume()

    def _end_draining(self) -> None:
        """Nobody waits for the sink to have room any more."""
        if self._draining is not None:
            self._draining.cancel()
            self._draining = None
            self._line.resume()

    def _begin(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(self._note_fault)
        return task

    def _note_fault(self, task: asyncio.Task[None]) -> None:
        """A fault of ours must not leave the client waiting for an answer for ever."""
        fault = None if task.cancelled() else task.exception()
        if fault is None:
            return
        log.exception("session-fault", fault, client=self._client_text)
        if task is self._draining:
            self._draining = None
            self._line.resume()
        elif not self._is_gone:
            self._line.cut("a fault of this server; please try again later")

    def _complete(self, event: ContentComplete) -> Reply | None:
        transaction = self._transaction
        self._transaction = None
        self._end_draining()
        if transaction is None:
            return Reply(451, "4.3.0", ("The message was lost on the way in; please send it again",))
        self._let_go(transaction)
        if transaction.failure is not None:
            return _reply_for(transaction.failure)
        self._messages += 1
        header = (
            header_of(transaction.pieces[0])
            if len(transaction.pieces) == 1
            else header_of(b"".join(transaction.pieces))
        )
        if count_received(header) >= self._desk.most_hops:
            if transaction.sink is not None:
                transaction.sink.abandon()
            return self._turn_round(transaction)
        if transaction.sink is not None:
            self._finishing = self._begin(self._finish(transaction, transaction.sink, event))
        else:
            pieces = tuple(transaction.pieces)
            self._take_in(transaction, Content(event.size_bytes, event.dots, event.is_8bit, pieces))
        return None

    async def _finish(self, transaction: _Transaction, sink: ContentSink, event: ContentComplete) -> None:
        try:
            content = await sink.finish(event.dots, event.is_8bit)
        except SpoolError as error:
            sink.abandon()
            if not self._is_gone:
                self._line.answer(_reply_for(error))
            return
        if self._is_gone:  # it will send the message again: that one is enough
            sink.abandon()
        else:
            self._take_in(transaction, content)

    def _turn_round(self, transaction: _Transaction) -> Reply:
        """The message has passed too many servers (RFC 5321 6.3)."""
        metrics.decisions.inc(_CIRCLE.slug)
        log.warning("mail-loop", client=self._client_text, reverse_path=str(transaction.reverse_path))
        self._desk.intake.spool.note_refusal(self._client_text, self._login, _CIRCLE.slug)
        return Reply(554, "5.4.6", (_CIRCLE.words,))

    def _take_in(self, transaction: _Transaction, content: Content) -> None:
        desk = self._desk
        recipients = tuple(transaction.recipients.values())
        origin, trace = self._origin_of(transaction.draft_parameters.smtputf8)
        queue_id = transaction.queue_id
        only = recipients[0].forward_path if transaction.accepted == 1 and len(recipients) == 1 else None
        field = trace.received(queue_id_text(queue_id), desk.clock(), only)
        draft = Draft(transaction.reverse_path, recipients, origin, transaction.draft_parameters)
        sink = transaction.sink
        accepted = self._accepted if sink is None else partial(self._accepted_from, sink)
        desk.intake.take_in(queue_id, draft, field, content, accepted)

    def _accepted_from(self, sink: ContentSink, envelope: Envelope, error: SpoolError | None) -> None:
        if error is not None:
            sink.abandon()
        self._accepted(envelope, error)

    def _accepted(self, envelope: Envelope, error: SpoolError | None) -> None:
        if self._is_gone:
            return
        if error is None:
            self._line.answer(Reply(250, "2.0.0", (f"Queued as {envelope.id_text}",)))
        else:
            self._line.answer(_reply_for(error))

    def _origin_of(self, smtputf8: bool) -> tuple[Origin, TraceWriter]:
        if self._trace is None or self._origin is None or self._origin_utf8 != smtputf8:
            keyword = protocol_keyword(self._verb, tls=bool(self._tls), login=bool(self._login), smtputf8=smtputf8)
            self._origin = Origin(
                self._client_text,
                keyword,
                self._hello_name,
                self._login,
                self._tls,
                self._desk.listener,
                self._uid,
                self._port,
            )
            self._origin_utf8 = smtputf8
            self._trace = TraceWriter(self._desk.hostname, self._origin)
        return self._origin, self._trace

    def _broken(self, event: ContentBroken) -> None:
        metrics.commands_refused.inc(str(event.reply.code))
        log.warning("content-refused", client=self._client_text, reply=str(event.reply))
        self._drop_transaction()

    def _credentials(self, event: Credentials) -> Reply | None:
        if self._desk.verify is None:
            return _NO_ACCOUNTS
        self._verifying = self._begin(self._verify(event))
        return None

    async def _verify(self, event: Credentials) -> None:
        verify = self._desk.verify
        if verify is None:
            return
        verified = await verify(event.login, event.password, self._client_text)
        if event.authorization_id not in ("", event.login):
            verified = Verified(is_right=False)  # acting for somebody else is not offered (RFC 4616 2)
        if verified.unavailable:
            metrics.logins.inc("unavailable")
            self._line.answer(Reply(454, "4.7.0", (verified.unavailable,)))
        elif verified.retry_after > 0:
            metrics.logins.inc("throttled")
            log.warning("login-throttled", client=self._client_text, login=event.login)
            words = f"Too many failed logins; try again in {verified.retry_after:.0f} s"
            self._line.answer(Reply(454, "4.7.0", (words,)))
        elif verified.is_right:
            self._login = event.login
            self._trace = None
            metrics.logins.inc("accepted")
            log.info("logged-in", client=self._client_text, login=event.login)
            self._line.answer(_LOGGED_IN)
        else:
            metrics.logins.inc("refused")
            log.warning("login-refused", client=self._client_text, login=event.login)
            self._desk.intake.spool.note_refusal(
                self._client_text, "", Slug.LOGIN_WRONG
            )  # any login tried: they are many
            self._line.answer(_LOGIN_REFUSED)

    def _drop_transaction(self) -> None:
        transaction = self._transaction
        self._transaction = None
        if transaction is None:
            return
        self._end_draining()
        self._let_go(transaction)
        if transaction.sink is not None:
            transaction.sink.abandon()


_HANDLERS: dict[type[Event], Callable[..., Reply | None]] = {
    MailFrom: Session._mail,
    RcptTo: Session._rcpt,
    ContentWanted: Session._content_wanted,
    ContentPiece: Session._piece,
    ContentComplete: Session._complete,
    ContentBroken: Session._broken,
    Credentials: Session._credentials,
    Greeted: Session._greeted,
    TransactionReset: Session._reset,
    CommandRefused: Session._refused,
}


def _reply_for(error: SpoolError) -> Reply:
    """What a client hears of the spool: 452 for want of room (RFC 5321 4.2.3), 451 for everything else. Never a 250."""
    is_full = isinstance(error, SpoolFull)
    metrics.messages_deferred.inc("full" if is_full else "broken")
    if is_full:
        return Reply(452, "4.3.1", ("Too little space for the message now; try again later",))
    return Reply(451, "4.3.0", ("The message could not be stored; try again later",))
