"""What one side of the protocol learns, one struct a fact.

A server-side event whose class has `needs_reply = True` pauses the engine until `ServerConnection.reply()` is called:
a pipelined RCPT is not even parsed before policy has ruled on the one before. The other events are for the record:
the engine has answered by itself, or no answer is due.
"""

import enum
from typing import ClassVar

import msgspec

from posthouse.smtp.address import Path
from posthouse.smtp.reply import Reply


class Verb(enum.StrEnum):
    """The greeting a client used; it decides the dialect."""

    HELO = "HELO"
    EHLO = "EHLO"
    LHLO = "LHLO"


class BodyType(enum.StrEnum):
    """The BODY parameter of MAIL (RFC 6152)."""

    SEVEN_BIT = "7BIT"
    EIGHT_BIT_MIME = "8BITMIME"


class Ret(enum.StrEnum):
    """How much of the message a failure notice shall carry (RFC 3461 4.3). DEFAULT: the client did not say."""

    DEFAULT = ""
    FULL = "FULL"
    HEADERS = "HDRS"


class Notify(enum.Flag):
    """When the sender wants a notification (RFC 3461 4.1). DEFAULT: the client did not say, so failure (and delay)."""

    DEFAULT = 0
    NEVER = 1
    SUCCESS = 2
    FAILURE = 4
    DELAY = 8


class DotForm(enum.IntEnum):
    """How lines that begin with a dot stand in stored octets (RFC 5321 4.5.2).

    NONE: no line begins with a dot, so the wire form and the plain form are the same octets. STUFFED: as DATA brought
    it, the extra dots in place. PLAIN: as BDAT brought it, some line beginning with a single dot.
    """

    NONE = 0
    STUFFED = 1
    PLAIN = 2


class MailParameters(msgspec.Struct, frozen=True):
    """The parameters of MAIL. `size_bytes` is 0 when not declared; `envelope_id` is decoded xtext (RFC 3461 4.4)."""

    size_bytes: int = 0
    body: BodyType = BodyType.SEVEN_BIT
    smtputf8: bool = False
    ret: Ret = Ret.DEFAULT
    envelope_id: str = ""
    auth: str = ""


class RcptParameters(msgspec.Struct, frozen=True):
    """The parameters of RCPT. `original_recipient` is "rfc822;user@example.org" with the xtext decoded (RFC 3461 4.2)."""

    notify: Notify = Notify.DEFAULT
    original_recipient: str = ""


NO_MAIL_PARAMETERS = MailParameters()
NO_RCPT_PARAMETERS = RcptParameters()


class Event(msgspec.Struct, frozen=True):
    """What the server side learned."""

    needs_reply: ClassVar[bool] = False


class Greeted(Event, frozen=True):
    """EHLO, HELO or LHLO was answered; `hello_name` is what the client calls itself, unverified."""

    verb: Verb
    hello_name: str


class MailFrom(Event, frozen=True):
    """MAIL: a transaction wants to begin."""

    needs_reply: ClassVar[bool] = True
    reverse_path: Path
    parameters: MailParameters


class RcptTo(Event, frozen=True):
    """RCPT: one more recipient; the engine counts it when the reply is positive."""

    needs_reply: ClassVar[bool] = True
    forward_path: Path
    parameters: RcptParameters


class ContentWanted(Event, frozen=True):
    """DATA, or the first BDAT, with at least one recipient accepted. Answer `CONTENT_WELCOME` or a refusal.

    For DATA the engine turns CONTENT_WELCOME into 354; for BDAT it answers each chunk itself and, after a refusal, still
    swallows the octets that were announced (RFC 3030 2).
    """

    needs_reply: ClassVar[bool] = True
    declared_bytes: int


class ContentPiece(Event, frozen=True):
    """Some octets of the message, in wire form (see DotForm). Pieces come in order and join to the content."""

    data: bytes


class ContentComplete(Event, frozen=True):
    """The message has ended well; every piece has been reported. The reply decides its fate (one for LMTP recipients each)."""

    needs_reply: ClassVar[bool] = True
    size_bytes: int
    dots: DotForm
    is_8bit: bool


class ContentBroken(Event, frozen=True):
    """The content cannot be taken (bare CR or LF, too large, header too long): forget the pieces. The engine has answered."""

    reply: Reply


class Credentials(Event, frozen=True):
    """An AUTH exchange has brought a login and a password to be verified (RFC 4954). Answer 235 or 535."""

    needs_reply: ClassVar[bool] = True
    mechanism: str
    login: str
    password: str
    authorization_id: str = ""


class TlsWanted(Event, frozen=True):
    """STARTTLS was answered with 220. The driver sends what is pending, runs the handshake, then calls `tls_started()`."""


class TransactionReset(Event, frozen=True):
    """RSET, or a new greeting: the transaction so far is forgotten."""


class CommandRefused(Event, frozen=True):
    """The engine refused a command by itself: syntax, sequence, limits. `command` is the offending line, cut to 512 octets."""

    command: bytes
    reply: Reply


class CommandAnswered(Event, frozen=True):
    """The engine answered a command that decides nothing (NOOP, HELP, VRFY, EXPN)."""

    command: bytes


class QuitReceived(Event, frozen=True):
    """QUIT was answered with 221; the connection ends when the reply is out."""
