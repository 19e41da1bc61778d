"""What a server engine is told once: its name, what it offers, what it bears."""

import enum

import msgspec

from posthouse.smtp.content import HEADER_OCTETS, ContentLimits, LineEndings
from posthouse.smtp.extension import Limits, Offers


class Dialect(enum.StrEnum):
    """SMTP, or LMTP (RFC 2033): another greeting, and one reply a recipient after the content."""

    SMTP = "SMTP"
    LMTP = "LMTP"


class ServerSettings(msgspec.Struct, frozen=True, cache_hash=True):
    """Settings of a `ServerConnection`.

    `size_limit` (octets, 0: none) is offered as SIZE. `mail_max` and `rcpt_max` bound transactions a session and recipients a
    transaction, and are offered as LIMITS; 0: none. `normalize` turns bare CR and LF of content into CRLF, and lets LF end a
    command line. From `errors_slow` errors on answers are delayed, the error number `errors_close` is answered with 421; both
    count anew after each accepted message. `refusals_close` does the same for 5yz replies that were given from outside.
    `idle_commands` NOOPs and the like are free for each message. `small_chunks` BDATs of less than 512 octets are borne for
    each message, so that nobody makes us work for nothing.
    """

    hostname: str
    size_limit: int = 0
    header_limit: int = HEADER_OCTETS
    starttls: bool = False
    auth_mechanisms: tuple[str, ...] = ()
    auth_required: bool = False
    auth_in_clear_allowed: bool = False
    normalize: bool = False
    errors_slow: int = 10
    errors_close: int = 20
    refusals_close: int = 100
    mail_max: int = 0
    rcpt_max: int = 1000
    dialect: Dialect = Dialect.SMTP
    banner: str = "Posthouse"
    pipelining: bool = True
    eight_bit_mime: bool = True
    smtputf8: bool = True
    chunking: bool = True
    dsn: bool = True
    idle_commands: int = 100
    small_chunks: int = 1000

    @property
    def line_endings(self) -> LineEndings:
        """What a bare CR or LF in content gets."""
        return LineEndings.NORMALIZE if self.normalize else LineEndings.STRICT

    @property
    def content_limits(self) -> ContentLimits:
        """The bounds of one message's content."""
        return ContentLimits(self.size_limit, self.header_limit, self.line_endings)

    def offers(self, *, tls: bool, auth: bool) -> Offers:
        """What EHLO offers: STARTTLS only until there is TLS, AUTH only where a password may be sent."""
        return Offers(
            pipelining=self.pipelining,
            size=True,
            size_limit=self.size_limit,
            eight_bit_mime=self.eight_bit_mime,
            smtputf8=self.smtputf8,
            chunking=self.chunking,
            enhanced_status_codes=True,
            dsn=self.dsn,
            starttls=self.starttls and not tls,
            auth=self.auth_mechanisms if auth else (),
            limits=Limits(self.mail_max, self.rcpt_max),
        )
