"""The client side of SMTP and LMTP: commands to octets, octets to replies matched to their commands. No I/O.

Every command that is written is remembered until its reply has come, so that a whole group may be written at once (RFC 2920)
and each reply still finds its command. What may not be written now is a LocalProtocolError, a fault of the caller; what the
server may not say is a ProtocolBroken event, after which nothing it says is believed.

No octet that could end or begin a command leaves inside one: paths, names and parameters are checked here, where they are
written, whatever was checked before.
"""

import binascii
import collections
import enum
import re

from posthouse.smtp.address import AddressError, Path
from posthouse.smtp.command import DATA, QUIT, RSET, STARTTLS, Auth, Bdat, Command, Hello, Mail, Rcpt
from posthouse.smtp.dots import stuffer
from posthouse.smtp.driving import LocalProtocolError
from posthouse.smtp.event import (
    NO_MAIL_PARAMETERS,
    NO_RCPT_PARAMETERS,
    BodyType,
    DotForm,
    Event,
    MailParameters,
    RcptParameters,
    Ret,
    Verb,
)
from posthouse.smtp.extension import NO_OFFERS, Offers, parse_offers
from posthouse.smtp.reply import Reply, ReplyError, ReplyReader


class CannotBeSaid(LocalProtocolError):
    """A path that no command can carry: it would break the line, or needs SMTPUTF8 where that isn't spoken."""


class Asked(enum.StrEnum):
    """What a reply answers."""

    GREETING = "greeting"
    HELLO = "hello"
    STARTTLS = "starttls"
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT = "content"
    BDAT = "bdat"
    RSET = "rset"
    QUIT = "quit"
    VERBATIM = "verbatim"


class Timeout(enum.StrEnum):
    """What the server is given time for (RFC 5321 4.5.3.2); the driver knows how long."""

    NONE = "none"
    GREETING = "greeting"
    COMMAND = "command"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    CONTENT_BLOCK = "content-block"
    CONTENT_END = "content-end"
    TLS = "tls"


class ClientState(enum.Enum):
    """Where a connection is."""

    OPEN = "open"
    CONTENT = "content"  # 354 was said: only content may be written
    TLS_WANTED = "tls-wanted"  # 220 to STARTTLS: nothing may be written or read in the clear
    BROKEN = "broken"


class Answered(Event, frozen=True):
    """The reply to the oldest command that had none."""

    asked: Asked
    reply: Reply


class Farewell(Event, frozen=True):
    """A 421 that answers nothing: the server is about to close (RFC 5321 3.8)."""

    reply: Reply


class ProtocolBroken(Event, frozen=True):
    """The server said what it may not; the connection is of no use any more. `words` completes "the server sent ..."."""

    words: str


ClientEvent = Answered | Farewell | ProtocolBroken

# Bound here because an attribute of an enum class costs ten times a module's, and each reply asks for several.
_MAIL, _RCPT, _DATA_ASKED, _CONTENT, _VERBATIM = Asked.MAIL, Asked.RCPT, Asked.DATA, Asked.CONTENT, Asked.VERBATIM
_OPEN, _IN_CONTENT, _TLS_WANTED, _BROKEN = (
    ClientState.OPEN,
    ClientState.CONTENT,
    ClientState.TLS_WANTED,
    ClientState.BROKEN,
)
_MUST_BE_LAST = frozenset({Asked.HELLO, Asked.STARTTLS, Asked.AUTH, Asked.DATA, Asked.QUIT, Asked.GREETING})
_POSITIVE = {
    Asked.GREETING: frozenset({220}),
    Asked.HELLO: frozenset({250}),
    Asked.STARTTLS: frozenset({220}),
    Asked.AUTH: frozenset({235, 334}),
    Asked.DATA: frozenset({354}),
}
"""The positive replies that fit; of all other commands, any 2yz. A negative reply may answer anything."""
_TIMEOUTS = {
    Asked.GREETING: Timeout.GREETING,
    Asked.MAIL: Timeout.MAIL,
    Asked.RCPT: Timeout.RCPT,
    Asked.DATA: Timeout.DATA,
    Asked.CONTENT: Timeout.CONTENT_END,
    Asked.BDAT: Timeout.CONTENT_END,
}
_hello_name = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII).fullmatch
_written_domain = re.compile(r"[A-Za-z0-9_.-]*|\[[A-Za-z0-9:.-]+\]", re.ASCII).fullmatch
_breaks_line = re.compile(rb"[\r\n\0]").search
_DATA, _RSET, _QUIT, _STARTTLS = (command.encode() for command in (DATA, RSET, QUIT, STARTTLS))
_END_OF_DATA = b".\r\n"
_IN_CLEAR = "octets in the clear after STARTTLS"


class ClientConnection:
    """One connection to a server, from its greeting on.

    `dialect` is Verb.EHLO for SMTP and Verb.LHLO for LMTP, where each recipient gets its own reply after the content. The
    driver hands what the socket brought to `receive_data`, acts on the events, and sends what `data_to_send` holds. Once the
    server has broken the protocol, nothing more is written, whatever is asked for.
    """

    def __init__(self, dialect: Verb = Verb.EHLO) -> None:
        self.dialect = dialect
        self.state = _OPEN
        self.offers: Offers = NO_OFFERS
        self.accepted_recipients = 0
        """Recipients of the running transaction that got a positive reply."""
        self._asked: collections.deque[Asked] = collections.deque([Asked.GREETING])
        self._out: list[bytes] = []
        self._reader = ReplyReader()
        self._helo = b""
        self._responses: list[str] = []
        self._stuffer = stuffer()
        self._tail = b"\r\n"

    # --- what is pending

    @property
    def timeout(self) -> Timeout:
        """What the server is being waited for; NONE when it owes nothing."""
        if self.state is _TLS_WANTED:
            return Timeout.TLS
        if self.state is _IN_CONTENT:
            return Timeout.CONTENT_BLOCK
        return _TIMEOUTS.get(self._asked[0], Timeout.COMMAND) if self._asked else Timeout.NONE

    @property
    def owed(self) -> int:
        """How many replies are still to come."""
        return len(self._asked)

    def data_to_send(self) -> list[bytes]:
        """What must be sent now, in pieces that were not copied; the list is the caller's."""
        out, self._out = self._out, []
        return out

    # --- commands

    def hello(self, name: str) -> None:
        """EHLO, or LHLO by dialect. A server that doesn't know EHLO gets a HELO by itself; one Answered comes of it."""
        if not _hello_name(name):
            raise LocalProtocolError(f"{name!r} cannot be said in {self.dialect}")
        self._helo = Hello(Verb.HELO, name).encode() if self.dialect is Verb.EHLO else b""
        self._say(Asked.HELLO, Hello(self.dialect, name).encode())

    def starttls(self) -> None:
        """STARTTLS (RFC 3207). After a positive Answered the driver shakes hands, then calls `tls_started`."""
        self._say(Asked.STARTTLS, _STARTTLS)

    def tls_started(self) -> None:
        """TLS runs now: what the server offered in the clear is forgotten, and hello() is due again (RFC 3207 4.2)."""
        if self.state is not _TLS_WANTED:
            raise LocalProtocolError("TLS starts after a positive reply to STARTTLS")
        self.state = _OPEN
        self.offers = NO_OFFERS
        self._reader = ReplyReader()

    def auth(self, mechanism: str, login: str, password: str) -> None:
        """AUTH by PLAIN or LOGIN (RFC 4954); the exchange is made here, and one Answered comes at its end."""
        if "\0" in login or "\0" in password:
            raise LocalProtocolError("a login or password cannot hold a NUL")
        user, secret = login.encode(), password.encode()
        match mechanism:
            case "PLAIN":
                self._responses = []
                command = Auth("PLAIN", _base64(b"\0%s\0%s" % (user, secret)))
            case "LOGIN":
                self._responses = [_base64(secret), _base64(user)]
                command = Auth("LOGIN")
            case _:
                raise LocalProtocolError(f"AUTH {mechanism} is not spoken here")
        self._say(Asked.AUTH, command.encode())

    def mail(self, reverse_path: Path, parameters: MailParameters = NO_MAIL_PARAMETERS) -> None:
        """MAIL. SIZE, RET and ENVID are left out where not offered; SMTPUTF8 or 8BITMIME not offered is the caller's error."""
        offers = self.offers
        if parameters.smtputf8 and not offers.smtputf8:
            raise LocalProtocolError("the server does not offer SMTPUTF8")
        if parameters.body is BodyType.EIGHT_BIT_MIME and not offers.eight_bit_mime:
            raise LocalProtocolError("the server does not offer 8BITMIME")
        may_be_said = MailParameters(
            size_bytes=parameters.size_bytes if offers.size else 0,
            body=parameters.body,
            smtputf8=parameters.smtputf8,
            ret=parameters.ret if offers.dsn else Ret.DEFAULT,
            envelope_id=parameters.envelope_id if offers.dsn else "",
        )
        self._say(_MAIL, _encode(Mail(reverse_path, may_be_said), reverse_path, smtputf8=parameters.smtputf8))

    def rcpt(
        self, forward_path: Path, parameters: RcptParameters = NO_RCPT_PARAMETERS, *, smtputf8: bool = False
    ) -> None:
        """RCPT. NOTIFY and ORCPT are left out where DSN is not offered; `smtputf8` as MAIL had it."""
        may_be_said = parameters if self.offers.dsn else NO_RCPT_PARAMETERS
        self._say(_RCPT, _encode(Rcpt(forward_path, may_be_said), forward_path, smtputf8=smtputf8))

    def data(self) -> None:
        """DATA. Nothing more may be written until it is answered (RFC 2920 3.1)."""
        self._say(_DATA_ASKED, _DATA)

    def bdat(self, chunk: bytes, *, is_last: bool) -> None:
        """BDAT with its octets, in plain form (RFC 3030). One reply a chunk; for LMTP the last gets one a recipient."""
        if not self.offers.chunking:
            raise LocalProtocolError("the server does not offer CHUNKING")
        self._say(Asked.BDAT, Bdat(len(chunk), is_last).encode())
        self._out.append(chunk)
        if is_last:
            self._asked.extend([Asked.BDAT] * (self._content_replies() - 1))

    def rset(self) -> None:
        """RSET."""
        self._say(Asked.RSET, _RSET)

    def quit(self) -> None:
        """QUIT."""
        self._say(Asked.QUIT, _QUIT)

    def verbatim(self, line: bytes) -> None:
        """Any one line, as it is, for probes; its rules are the caller's, but it stays one line: no CR, LF or NUL inside."""
        if _breaks_line(line):
            raise LocalProtocolError("a verbatim command is one line")
        if self.state is not _OPEN:
            raise LocalProtocolError(f"no command can be written in state {self.state.value}")
        self._out.append(line + b"\r\n")
        self._asked.append(Asked.VERBATIM)

    def raw(self, octets: bytes, replies: int = 1) -> None:
        """Any octets, as they are, for probes that are wrong on purpose; `replies` answers are awaited for them.

        Nothing is checked, so nothing but a test may call this: whoever relays a mail must not.
        """
        if self.state is _BROKEN:
            return
        if self.state is not _OPEN:
            raise LocalProtocolError(f"no octets can be written in state {self.state.value}")
        self._out.append(octets)
        self._asked.extend([_VERBATIM] * replies)

    def withdraw(self) -> None:
        """The newest of the awaited VERBATIM answers will not come: a probe has shown that it needs none."""
        if not self._asked or self._asked[-1] is not _VERBATIM:
            raise LocalProtocolError("no verbatim answer is awaited")
        self._asked.pop()

    # --- content, after 354

    def content(self, pieces: list[bytes] | tuple[bytes, ...], dots: DotForm) -> None:
        """The next pieces of the content, which stand in `dots` form; stuffed here if they must be."""
        if self.state is _BROKEN:
            return
        if self.state is not _IN_CONTENT:
            raise LocalProtocolError("content follows a 354")
        for piece in pieces:
            if piece:
                self._out.append(self._stuffer.turn(piece) if dots is DotForm.PLAIN else piece)
                self._tail = piece[-2:] if len(piece) > 1 else self._tail[-1:] + piece

    def end_content(self) -> None:
        """The final dot. Commands may follow it at once where PIPELINING is offered."""
        if self.state is _BROKEN:
            return
        if self.state is not _IN_CONTENT:
            raise LocalProtocolError("the final dot follows a 354")
        self._out.append(_END_OF_DATA if self._tail == b"\r\n" else b"\r\n.\r\n")
        self.state = _OPEN
        self._asked.extend([_CONTENT] * self._content_replies())

    # --- what the server says

    def receive_data(self, data: bytes) -> list[ClientEvent]:
        """Takes octets from the socket (from the TLS layer, once there is one); what they mean, in order."""
        if not data or self._is_in(_BROKEN):
            return []
        if self._is_in(_TLS_WANTED):
            return [self._break(_IN_CLEAR)]
        events: list[ClientEvent] = []
        reader = self._reader
        reader.receive_data(data)
        try:
            while (reply := reader.next_reply()) is not None:
                event = self._match(reply)
                if event is not None:
                    events.append(event)
                if self._is_in(_BROKEN):
                    return events
        except ReplyError as error:
            in_clear = self._is_in(_TLS_WANTED)
            events.append(self._break(_IN_CLEAR if in_clear else str(error)))
            return events
        if self._is_in(_TLS_WANTED) and not reader.is_between_replies:
            events.append(self._break(_IN_CLEAR))
        return events

    def _is_in(self, state: ClientState) -> bool:
        return self.state is state

    def _match(self, reply: Reply) -> ClientEvent | None:
        """Finds the command that a reply answers, and what follows from it."""
        if self.state is _TLS_WANTED:
            return self._break(_IN_CLEAR)
        if self.state is _IN_CONTENT:
            return self._interrupted(reply)
        if not self._asked:
            return Farewell(reply) if reply.code == 421 else self._break(f"a reply to nothing: {reply}")
        asked = self._asked.popleft()
        code = reply.code
        if code < 400 and asked is not _VERBATIM:
            fitting = _POSITIVE.get(asked)
            if code not in fitting if fitting else code >= 300:
                return self._break(f"a reply that fits no {asked.value}: {reply}")
        if asked is _RCPT:
            self.accepted_recipients += code < 300
        elif asked is _MAIL:
            self.accepted_recipients = 0
        elif asked is not _CONTENT:
            return self._answered_otherwise(asked, reply)
        return Answered(asked, reply)

    def _answered_otherwise(self, asked: Asked, reply: Reply) -> ClientEvent | None:
        """What follows from a reply that changes the state, or that the engine answers by itself."""
        match asked:
            case Asked.DATA if reply.code == 354:
                self.state = _IN_CONTENT
                self._stuffer = stuffer()
                self._tail = b"\r\n"
            case Asked.HELLO:
                return self._heard_hello(reply)
            case Asked.STARTTLS if reply.code == 220:
                self.state = _TLS_WANTED
            case Asked.AUTH if reply.code == 334:
                return self._challenged(reply)
        return Answered(asked, reply)

    def _heard_hello(self, reply: Reply) -> ClientEvent | None:
        helo, self._helo = self._helo, b""
        if reply.code == 250:
            # A server that only knows HELO offers nothing, whatever its reply says.
            self.offers = parse_offers(reply) if helo or self.dialect is Verb.LHLO else NO_OFFERS
        elif helo and reply.code in {500, 501, 502, 504, 550, 554}:
            self._say(Asked.HELLO, helo)
            return None
        return Answered(Asked.HELLO, reply)

    def _challenged(self, reply: Reply) -> ClientEvent | None:
        if not self._responses:
            return self._break(f"one challenge too many: {reply}")
        self._out.append(self._responses.pop().encode() + b"\r\n")
        self._asked.appendleft(Asked.AUTH)
        return None

    def _interrupted(self, reply: Reply) -> ClientEvent:
        """A reply before the final dot: a refusal ends it all; acceptance of what was not sent whole is no acceptance."""
        self.state = _BROKEN
        if reply.code >= 400:
            return Answered(Asked.CONTENT, reply)
        return ProtocolBroken(f"a reply before the end of the content: {reply}")

    # --- inside

    def _content_replies(self) -> int:
        """RFC 2033 4.2: LMTP answers once for each recipient it accepted."""
        return max(1, self.accepted_recipients) if self.dialect is Verb.LHLO else 1

    def _say(self, asked: Asked, octets: bytes) -> None:
        if self.state is _BROKEN:
            return
        if self.state is not _OPEN:
            raise LocalProtocolError(f"{asked.value} cannot be written in state {self.state.value}")
        pending = self._asked
        if pending and (not self.offers.pipelining or pending[-1] in _MUST_BE_LAST):
            raise LocalProtocolError(f"{asked.value} cannot be written before {pending[-1].value} is answered")
        pending.append(asked)
        self._out.append(octets)

    def _break(self, words: str) -> ProtocolBroken:
        self.state = _BROKEN
        return ProtocolBroken(words)


def _encode(command: Command, path: Path, *, smtputf8: bool) -> bytes:
    """A command line with a path, guarded: one line, and nothing in it but what the path means."""
    if not smtputf8 and not path.local_part.isascii():
        raise CannotBeSaid(f"{path.local_part!r} needs SMTPUTF8")
    if not _written_domain(path.domain):
        raise CannotBeSaid(f"{path.domain!r} is no domain")
    try:
        line = command.encode()
    except AddressError as error:
        raise CannotBeSaid(error.words) from error
    if _breaks_line(line, 0, len(line) - 2):
        raise CannotBeSaid(f"{line!r} is not one line")
    return line


def _base64(octets: bytes) -> str:
    return binascii.b2a_base64(octets, newline=False).decode()
