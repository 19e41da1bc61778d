"""The server side of SMTP and LMTP: octets in, events out; replies in, octets out (RFC 5321, RFC 2033).

A driver gives what it read to `receive_data`, asks `next_event` until that is NEED_DATA, PAUSED or CLOSED, answers each
event that needs a reply with `reply`, and writes `data_to_send` once it must wait: so all replies of a pipelined flight leave
in one write (RFC 2920). While a reply is owed nothing further is parsed.

What needs no decision is answered here: syntax, order, limits, NOOP, RSET, HELP, VRFY. Each such answer is also an event.

After an error the session goes on, errors are counted, the answers come slower (`delay`) and at last there is a 421. Only where
it is no longer certain what is a command does the connection end at once: a bare CR or LF in content. Then `ending` is DRAIN:
the driver shuts its sending side, reads on a little and closes, so that the reply arrives and is not lost to a reset.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

from posthouse.smtp import answers
from posthouse.smtp.command import (
    AUTH_LINE_OCTETS,
    BAD_CHUNK,
    QUIT,
    UNKNOWN_COMMAND,
    Auth,
    Bdat,
    Command,
    CommandError,
    Hello,
    Mail,
    Rcpt,
    Simple,
    command_line_limit,
    parse_command,
)
from posthouse.smtp.content import ContentReader, Fault
from posthouse.smtp.driving import CLOSED, NEED_DATA, PAUSED, Ending, LocalProtocolError, Signal, Timeout
from posthouse.smtp.event import (
    CommandAnswered,
    CommandRefused,
    ContentBroken,
    ContentComplete,
    ContentPiece,
    ContentWanted,
    Credentials,
    Event,
    Greeted,
    MailFrom,
    QuitReceived,
    RcptTo,
    TlsWanted,
    TransactionReset,
    Verb,
)
from posthouse.smtp.line import BadLine, Inbox
from posthouse.smtp.outbox import A_RESPONSE, RECORDED_OCTETS, Outbox
from posthouse.smtp.reply import CONTENT_WELCOME, Reply
from posthouse.smtp.sasl import Authentication, Challenge, SaslError
from posthouse.smtp.settings import Dialect, ServerSettings
from posthouse.smtp.standing import Standing, shared_of
from posthouse.smtp.state import (
    HELLO_FIRST,
    LHLO_FIRST,
    NO_RECIPIENT,
    ONLY_QUIT,
    OUT_OF_ORDER,
    RCPT_FIRST,
    TRANSITIONS,
    Cause,
    Phase,
)
from posthouse.smtp.transaction import NO_TRANSACTION, Transaction

# Drivers and handlers find all they need here.
__all__ = ["CLOSED", "CONTENT_WELCOME", "NEED_DATA", "PAUSED", "Dialect", "Ending", "LocalProtocolError"]
__all__ += ["ServerConnection", "ServerSettings", "Signal", "Timeout"]

# Bound here because an attribute of an enum class costs seven times a module's, and each command asks for several.
_NOT_YET = Ending.NOT_YET
_UNWELCOME, _HANDSHAKE = Phase.UNWELCOME, Phase.HANDSHAKE
_SILENT, _RCPT, _CONTENT, _CHUNK = Phase.SILENT, Phase.RCPT, Phase.CONTENT, Phase.CHUNK
_NOTHING, _COMMAND, _CONTENT_TIME = Timeout.NONE, Timeout.COMMAND, Timeout.CONTENT
_MAIL_ACCEPTED, _RCPT_ACCEPTED, _CONTENT_WELCOME = Cause.MAIL_ACCEPTED, Cause.RCPT_ACCEPTED, Cause.CONTENT_WELCOME
_TRANSACTION_OVER = Cause.TRANSACTION_OVER

_WEB_VERBS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT"})
_Happened = Event | Signal | None
"""What one step came to; None: something was done that is no event."""
_Step = Callable[["ServerConnection"], _Happened]


class ServerConnection:
    """One client's session."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._outbox = Outbox(settings)
        self._inbox = Inbox(lf_suffices=settings.normalize)
        self._events: collections.deque[Event] = collections.deque()
        self._owed: Event | None = None
        self._phase = Phase.SILENT
        self._is_eof = False
        self._standing = Standing(settings)
        self._transaction = NO_TRANSACTION
        self._is_mail_refused = False
        self._authentication = Authentication()
        self._swallow_left = 0
        self._after_swallowing: Callable[[], Event | None] = _nothing
        self._mails = 0
        self._mail_max = settings.mail_max
        self._content_limits, self._greeting, self._goodbye, self._too_large = shared_of(settings)
        self._step: _Step = ServerConnection._wait

    # What the driver asks and tells.

    @property
    def delay(self) -> float:
        """Seconds to wait before sending what is to be sent: grows with the client's errors."""
        delay = self._outbox.patience.delay
        return delay if delay and self._outbox else 0.0

    @property
    def ending(self) -> Ending:
        """Whether, and how, to end the connection once everything is sent."""
        return self._outbox.ending

    @property
    def timeout(self) -> Timeout:
        """Which wait it is now. The driver sets its timer anew whenever `timer_mark` changes, not whenever octets come."""
        phase = self._phase
        if phase is _HANDSHAKE:
            return Timeout.HANDSHAKE
        if self._owed is not None or phase is _SILENT or self._outbox.ending is not _NOT_YET:
            return _NOTHING
        return _CONTENT_TIME if phase is _CONTENT or phase is _CHUNK else _COMMAND

    @property
    def timer_mark(self) -> int:
        """Changes with each command and each 4096 octets of content: a client that sends an octet now and then does not move it."""
        return self._inbox.mark

    @property
    def buffered_bytes(self) -> int:
        """Octets received and not yet used. Bounded if the driver does not read while PAUSED."""
        inbox = self._inbox
        return len(inbox.buffer) - inbox.at

    @property
    def is_idle(self) -> bool:
        """No transaction is under way and no reply is owed: a 421 now costs nobody anything."""
        return self._phase <= Phase.READY and self._owed is None and not self._events

    def greet(self, answer: Reply | None = None) -> None:
        """Sends the greeting: 220, the default; 554 to serve nothing but QUIT (RFC 5321 3.1); 421 to close."""
        if answer is None:
            answer = self._greeting
        if answer.is_transient:
            self._outbox.close(answer, Ending.DRAIN)
        else:
            self._outbox.say(answer)
            self._enter(Cause.GREETED if answer.is_positive else Cause.TURNED_AWAY)

    def allow_auth_in_clear(self, *, allowed: bool) -> None:
        """Whether this client may send a password without TLS (it is loopback, say). Takes effect at the next EHLO."""
        self._standing.allow_auth_in_clear(allowed=allowed)

    def limit(self, *, mail_max: int, rcpt_max: int) -> None:
        """LIMITS for this client from the next EHLO on (0: none); of `rcpt_max` only the word, it is the handler's to refuse by."""
        self._mail_max = mail_max
        self._standing.announce(mail_max=mail_max, rcpt_max=rcpt_max)

    def receive_data(self, data: bytes) -> None:
        """Octets from the client. Those behind STARTTLS are thrown away until `tls_started` (RFC 3207 4.2), all behind the end."""
        if self._phase is not _HANDSHAKE and self._outbox.ending is _NOT_YET and not self._is_eof:
            self._inbox.receive(data)

    def receive_eof(self) -> None:
        """The client will send no more. What it said before is still answered."""
        self._is_eof = True

    def data_to_send(self) -> bytes:
        """The replies that are due, once."""
        return self._outbox.take()

    def delay_is_over(self) -> None:
        """The driver has waited for `delay`."""
        self._outbox.patience.delay = 0.0

    def cut(self, answer: Reply) -> None:
        """Ends the session from outside (a deadline, a shutdown) with a 421 that answers no command."""
        if self._outbox.ending is _NOT_YET:
            self._owed = None
            self._events.clear()
            self._outbox.close(answer, Ending.DRAIN)

    def tls_started(self) -> None:
        """The handshake is done: all that was said is forgotten, and what came before it in the clear (RFC 3207 4.2)."""
        self._enter(Cause.TLS_STARTED)
        self._standing.begin_tls()
        self._transaction = NO_TRANSACTION
        self._inbox.clear()

    def next_event(self) -> Event | Signal:
        """The next thing that happened, or why there is none."""
        if self._events:
            return self._events.popleft()
        if self._owed is not None:
            return PAUSED
        outbox = self._outbox
        while outbox.ending is _NOT_YET:
            event = self._step(self)
            if event is None:
                continue
            if event is not NEED_DATA or not self._is_eof:
                return event
            outbox.ending = Ending.CLOSE
        return CLOSED

    def reply(self, answer: Reply) -> None:
        """Answers the event that needed it. 421 also ends the session. For LMTP content each recipient gets this reply."""
        owed, self._owed = self._owed, None
        if owed is None:
            raise LocalProtocolError(f"no reply is owed, but here is {answer}")
        if answer.code == 421:
            self._outbox.close(answer, Ending.DRAIN)
            return
        _ANSWERS[type(owed)](self, owed, answer)

    def reply_each(self, replies: Sequence[Reply]) -> None:
        """Answers ContentComplete in LMTP: one reply for each accepted recipient, in their order (RFC 2033 4.2)."""
        if not isinstance(self._owed, ContentComplete) or len(replies) != self._answers_due:
            raise LocalProtocolError(f"{len(replies)} replies where {self._answers_due} are due")
        self._owed = None
        self._end_transaction(*replies)

    @property
    def _answers_due(self) -> int:
        """How many replies the content gets."""
        return self._transaction.recipients if self._settings.dialect is Dialect.LMTP else 1

    # Steps: one for each phase. None: something was done without an event.

    def _wait(self) -> _Happened:
        return PAUSED

    def _read_command(self) -> _Happened:
        line = self._inbox.next_line(self._line_limit)
        if line is None:
            return NEED_DATA
        if isinstance(line, BadLine):
            return self._outbox.refuse_line(line, answers.LINE_TOO_LONG)
        if self._outbox.patience.is_refused_too_often:
            return self._outbox.refuse_and_close(line, answers.TOO_MANY_REFUSALS)
        try:
            command = parse_command(line, self._standing.offers, smtputf8=self._transaction.smtputf8)
        except CommandError as error:
            return self._refuse_unread(line, error.reply)
        if self._phase is _UNWELCOME and command is not QUIT and type(command) is not Bdat:
            return self._outbox.refuse(line, ONLY_QUIT)
        return _HANDLERS[type(command)](self, line, command)

    def _read_content(self) -> _Happened:
        inbox, reader = self._inbox, self._transaction.reader
        octets = len(inbox)
        if not octets:
            return NEED_DATA
        inbox.at = reader.read_until_end(inbox.buffer, inbox.at)
        inbox.note_used(octets)
        return self._report(reader, is_over=reader.ended)

    def _read_chunk(self) -> _Happened:
        inbox, transaction = self._inbox, self._transaction
        octets = len(inbox)
        if not octets and transaction.chunk_left:
            return NEED_DATA
        is_over = transaction.read_chunk(inbox)
        inbox.note_used(octets - len(inbox))
        return self._report(transaction.reader, is_over=is_over)

    def _read_swallowed(self) -> _Happened:
        """The octets of a BDAT that is refused: they are announced, so they come, and they are no commands (RFC 3030 2)."""
        inbox = self._inbox
        octets = min(len(inbox), self._swallow_left)
        if not octets and self._swallow_left:
            return NEED_DATA
        inbox.at += octets
        inbox.note_used(octets)
        self._swallow_left -= octets
        if self._swallow_left:
            return NEED_DATA
        self._step = _STEPS[self._phase]
        return self._after_swallowing()

    def _read_response(self) -> _Happened:
        line = self._inbox.next_line(lambda _head: AUTH_LINE_OCTETS)
        if line is None:
            return NEED_DATA
        if isinstance(line, BadLine):
            self._enter(Cause.LOGIN_OVER)
            return self._outbox.refuse_line(BadLine(A_RESPONSE, line.fault), answers.RESPONSE_TOO_LONG)
        return self._go_on(A_RESPONSE, lambda: self._authentication.respond(line))

    # Commands.

    def _on_hello(self, line: bytes, command: Hello) -> _Happened:
        if (command.verb is Verb.LHLO) is not (self._settings.dialect is Dialect.LMTP):
            return self._outbox.refuse(line, UNKNOWN_COMMAND)
        greeted = Greeted(command.verb, command.name)
        self._outbox.say(self._standing.hello(command.verb))
        too_many = self._outbox.note_idle(line)
        if self._phase <= Phase.READY:
            self._enter(Cause.HELLO)
            return too_many or greeted
        self._forget_transaction(Cause.HELLO)
        self._events.append(greeted)
        return too_many or TransactionReset()

    def _on_mail(self, line: bytes, command: Mail) -> _Happened:
        settings = self._settings
        refusal = self._out_of_order("MAIL")
        if refusal:
            return self._outbox.refuse(line, refusal)
        self._is_mail_refused = False
        self._mails += 1
        if self._mail_max and self._mails > self._mail_max:
            return self._outbox.refuse_and_close(line, answers.TOO_MANY_MAILS)
        refusal = self._standing.refusal_of_mail()
        if refusal:
            return self._refuse_mail(line, refusal)
        if settings.size_limit and command.parameters.size_bytes > settings.size_limit:
            self._is_mail_refused = True
            return self._outbox.decline(line, self._too_large)
        return self._ask(MailFrom(command.reverse_path, command.parameters))

    def _on_rcpt(self, line: bytes, command: Rcpt) -> _Happened:
        refusal = self._out_of_order("RCPT")
        if refusal:
            return self._refuse_in_transaction(line, refusal)
        transaction = self._transaction
        if self._settings.rcpt_max and transaction.recipients >= self._settings.rcpt_max:
            return self._outbox.decline(line, answers.TOO_MANY_RECIPIENTS)
        transaction.tried += 1
        return self._ask(RcptTo(command.forward_path, command.parameters))

    def _on_data(self, line: bytes) -> _Happened:
        refusal = self._out_of_order("DATA")
        if refusal:
            return self._refuse_in_transaction(line, refusal)
        return self._ask(ContentWanted(self._transaction.declared))

    def _on_bdat(self, line: bytes, command: Bdat) -> _Happened:
        refusal = ONLY_QUIT if self._phase is _UNWELCOME else self._out_of_order("BDAT")
        if refusal:
            return self._swallow(command.size_bytes, lambda: self._refuse_in_transaction(line, refusal))
        transaction = self._transaction
        transaction.begin_chunk(command)
        if transaction.small_chunks > self._settings.small_chunks:
            return self._outbox.refuse_and_close(line, answers.TOO_MANY_CHUNKS)
        if self._settings.size_limit and transaction.octets_read + command.size_bytes > self._settings.size_limit:
            return self._swallow(command.size_bytes, lambda: self._abort_transaction(line, self._too_large))
        if self._phase is _RCPT:
            return self._ask(ContentWanted(max(transaction.declared, command.size_bytes)))
        self._enter(Cause.CHUNK_BEGINS)
        return None

    def _on_auth(self, line: bytes, command: Auth) -> _Happened:
        refusal = self._out_of_order("AUTH") or self._standing.refusal_of_auth(command.mechanism)
        if refusal:
            return self._outbox.refuse(line, refusal)
        self._enter(Cause.LOGIN_BEGINS)
        return self._go_on(line, lambda: self._authentication.begin(command))

    def _go_on(self, line: bytes, step: Callable[[], Challenge | Credentials]) -> _Happened:
        try:
            result = step()
        except SaslError as error:
            self._enter(Cause.LOGIN_OVER)
            return self._outbox.refuse(line, error.reply)
        if isinstance(result, Credentials):
            return self._ask(result)
        self._outbox.say(result.reply)
        return None

    def _on_simple(self, line: bytes, command: Simple) -> _Happened:
        match command.verb:
            case "DATA":
                return self._on_data(line)
            case "RSET":
                self._is_mail_refused = False
                self._outbox.say(answers.OK)
                self._forget_transaction(_TRANSACTION_OVER)
                return self._outbox.note_idle(line) or TransactionReset()
            case "QUIT":
                self._outbox.close(self._goodbye, Ending.CLOSE)
                return QuitReceived()
            case "STARTTLS":
                return self._on_starttls(line)
            case verb:
                self._outbox.say(answers.BY_VERB[verb])
                return self._outbox.note_idle(line) or CommandAnswered(line[:RECORDED_OCTETS])

    def _on_starttls(self, line: bytes) -> _Happened:
        refusal = self._standing.refusal_of_starttls() or self._out_of_order("STARTTLS")
        if refusal:
            return self._outbox.refuse(line, refusal)
        self._outbox.say(answers.READY_FOR_TLS)
        self._inbox.clear()
        self._enter(Cause.STARTTLS)
        return TlsWanted()

    # What the replies from outside change.

    def _answer_mail(self, owed: MailFrom, answer: Reply) -> None:
        self._outbox.say(answer)
        if answer.is_positive:
            self._transaction = Transaction(owed.parameters.size_bytes, smtputf8=owed.parameters.smtputf8)
            self._enter(_MAIL_ACCEPTED)
        else:
            self._is_mail_refused = True
            self._outbox.note_refusal(answer)

    def _answer_rcpt(self, _owed: RcptTo, answer: Reply) -> None:
        self._outbox.say(answer)
        if answer.is_positive:
            self._transaction.recipients += 1
            self._enter(_RCPT_ACCEPTED)
        else:
            self._outbox.note_refusal(answer)

    def _answer_content_wanted(self, _owed: ContentWanted, answer: Reply) -> None:
        transaction = self._transaction
        chunk = transaction.chunk
        if answer.is_positive:
            transaction.begin_content(ContentReader(self._content_limits, chunked=chunk is not None))
            if chunk is None:
                self._outbox.say(answer)
            self._enter(_CONTENT_WELCOME if chunk is None else Cause.CHUNK_BEGINS)
        elif chunk is None:
            self._end_transaction(answer)
        else:
            self._swallow(chunk.size_bytes, lambda: self._end_transaction(answer))

    def _answer_content(self, _owed: ContentComplete, answer: Reply) -> None:
        self._end_transaction(*[answer] * self._answers_due)

    def _answer_credentials(self, _owed: Credentials, answer: Reply) -> None:
        self._outbox.say(answer)
        self._standing.is_logged_in = answer.is_positive
        self._outbox.note_refusal(answer)
        self._enter(Cause.LOGIN_OVER)

    # Content.

    def _report(self, reader: ContentReader, *, is_over: bool) -> _Happened:
        """What the octets just read amount to; `is_over`: the end of data, or of a chunk, was among them."""
        transaction = self._transaction
        if reader.fault and transaction.refusal is None:
            return self._break(reader.fault, is_over=is_over)
        is_complete = is_over and transaction.is_last
        if transaction.refusal is not None:
            if not is_over:
                return NEED_DATA
            self._end_transaction(*[transaction.refusal] * (self._answers_due if is_complete else 1))
            return None
        piece = reader.take_piece()
        if is_complete:
            event = self._ask(ContentComplete(reader.size_bytes, reader.dots, reader.is_8bit))
            if not piece:
                return event
            self._events.append(event)
        elif is_over:
            self._outbox.say(answers.CHUNK_READ)
            self._enter(Cause.CHUNK_READ)
        elif not piece:
            return NEED_DATA
        return ContentPiece(piece) if piece else None

    def _break(self, fault: Fault, *, is_over: bool) -> Event:
        """The content is at fault. Too much of it is swallowed to its end; after a bare CR or LF no end can be trusted."""
        transaction = self._transaction
        if fault is Fault.BARE_LINE_END:
            for _ in range(self._answers_due):
                self._outbox.say(answers.BARE_LINE_END)
            self._outbox.ending = Ending.DRAIN
            return ContentBroken(answers.BARE_LINE_END)
        refusal = self._too_large if fault is Fault.TOO_LARGE else answers.HEADER_TOO_LONG
        transaction.refusal = refusal
        self._outbox.patience.err()
        if is_over:
            self._end_transaction(*[refusal] * (self._answers_due if transaction.is_last else 1))
        return ContentBroken(refusal)

    def _swallow(self, octets: int, then: Callable[[], Event | None]) -> _Happened:
        self._swallow_left = octets
        self._after_swallowing = then
        self._step = ServerConnection._read_swallowed
        return None

    def _end_transaction(self, *due: Reply) -> None:
        """The content, or DATA, has got its answer, whichever: nothing of the transaction is left (RFC 5321 4.1.1.4)."""
        for answer in due:
            self._outbox.say(answer)
        if due[0].is_positive:
            self._outbox.patience.renew()
        else:
            self._outbox.note_refusal(due[0])
        self._forget_transaction(_TRANSACTION_OVER)

    def _forget_transaction(self, cause: Cause) -> None:
        self._transaction = NO_TRANSACTION
        self._enter(cause)

    def _abort_transaction(self, line: bytes, refusal: Reply) -> Event:
        """A chunk is refused, and with it all of its message: what is left of it would be no message."""
        event: Event = self._outbox.refuse(line, refusal)
        if self._outbox.ending is not _NOT_YET:
            return event
        if self._transaction.has_content:
            event = ContentBroken(refusal)
        elif self._transaction is not NO_TRANSACTION:
            self._events.append(TransactionReset())
        self._forget_transaction(_TRANSACTION_OVER)
        return event

    # Refusals and the end.

    def _out_of_order(self, verb: str) -> Reply | None:
        refusal = OUT_OF_ORDER[verb].get(self._phase)
        if refusal is RCPT_FIRST and self._transaction.tried:
            return NO_RECIPIENT
        return LHLO_FIRST if refusal is HELLO_FIRST and self._settings.dialect is Dialect.LMTP else refusal

    def _refuse_in_transaction(self, line: bytes, refusal: Reply) -> CommandRefused:
        """Out of order; no error where the commands were pipelined behind a MAIL, or behind RCPTs, that we refused."""
        if self._is_mail_refused or refusal is NO_RECIPIENT:
            return self._outbox.note_idle(line) or self._outbox.decline(line, refusal)
        return self._outbox.refuse(line, refusal)

    def _refuse_mail(self, line: bytes, refusal: Reply) -> CommandRefused:
        self._is_mail_refused = True
        return self._outbox.refuse(line, refusal)

    def _refuse_unread(self, line: bytes, refusal: Reply) -> Event:
        """The line is no command."""
        verb = line[:8].partition(b" ")[0].upper()
        if verb in _WEB_VERBS:
            return self._outbox.refuse_and_close(line, answers.NOT_A_WEB_SERVER)
        if self._phase is _UNWELCOME:
            return self._outbox.refuse(line, ONLY_QUIT)
        if verb == b"MAIL":
            return self._refuse_mail(line, refusal)
        return self._abort_transaction(line, refusal) if refusal is BAD_CHUNK else self._outbox.refuse(line, refusal)

    # Small parts.

    def _enter(self, cause: Cause) -> None:
        self._phase = phase = TRANSITIONS[self._phase, cause]
        self._step = _STEPS[phase]

    def _ask(self, event: Event) -> Event:
        self._owed = event
        return event

    def _line_limit(self, head: bytes) -> int:
        return command_line_limit(head, self._standing.offers)


def _nothing() -> None:
    """What follows when nothing was swallowed."""


_HANDLERS: dict[type[Command], Callable[[ServerConnection, bytes, Any], _Happened]] = {
    Hello: ServerConnection._on_hello,
    Mail: ServerConnection._on_mail,
    Rcpt: ServerConnection._on_rcpt,
    Bdat: ServerConnection._on_bdat,
    Auth: ServerConnection._on_auth,
    Simple: ServerConnection._on_simple,
}

_STEPS: dict[Phase, _Step] = {
    Phase.SILENT: ServerConnection._wait,
    Phase.UNWELCOME: ServerConnection._read_command,
    Phase.CONNECTED: ServerConnection._read_command,
    Phase.READY: ServerConnection._read_command,
    Phase.MAIL: ServerConnection._read_command,
    Phase.RCPT: ServerConnection._read_command,
    Phase.CONTENT: ServerConnection._read_content,
    Phase.CHUNK: ServerConnection._read_chunk,
    Phase.CHUNKS: ServerConnection._read_command,
    Phase.LOGIN: ServerConnection._read_response,
    Phase.HANDSHAKE: ServerConnection._wait,
}

_ANSWERS: dict[type[Event], Callable[[ServerConnection, Any, Reply], None]] = {
    MailFrom: ServerConnection._answer_mail,
    RcptTo: ServerConnection._answer_rcpt,
    ContentWanted: ServerConnection._answer_content_wanted,
    ContentComplete: ServerConnection._answer_content,
    Credentials: ServerConnection._answer_credentials,
}
