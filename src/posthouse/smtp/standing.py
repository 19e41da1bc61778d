"""How a session stands: under TLS or not, logged in or not, and so what EHLO offers and what is refused for lack of it."""

import functools

import msgspec

from posthouse.smtp import answers
from posthouse.smtp.command import NOT_IMPLEMENTED
from posthouse.smtp.content import ContentLimits
from posthouse.smtp.event import Verb
from posthouse.smtp.extension import NO_OFFERS, Limits, Offers
from posthouse.smtp.reply import Reply, reply
from posthouse.smtp.sasl import MECHANISMS
from posthouse.smtp.settings import Dialect, ServerSettings


class Standing:
    """The standing of one session. `offers` is what EHLO says now."""

    __slots__ = ("_announced", "_is_clear_allowed", "_long_hello", "_settings", "is_logged_in", "is_tls", "offers")

    def __init__(self, settings: ServerSettings) -> None:
        self.is_tls = False
        self.is_logged_in = False
        self.offers: Offers = NO_OFFERS
        self._settings = settings
        self._is_clear_allowed = settings.auth_in_clear_allowed
        self._announced = (settings.mail_max, settings.rcpt_max)
        self._refresh()

    def allow_auth_in_clear(self, *, allowed: bool) -> None:
        """Whether a password may be sent without TLS."""
        self._is_clear_allowed = allowed
        self._refresh()

    def announce(self, *, mail_max: int, rcpt_max: int) -> None:
        """Other LIMITS than the settings'."""
        self._announced = (mail_max, rcpt_max)
        self._refresh()

    def begin_tls(self) -> None:
        """TLS has started: a login in the clear is forgotten (RFC 3207 4.2)."""
        self.is_tls = True
        self.is_logged_in = False
        self._refresh()

    def hello(self, verb: Verb) -> Reply:
        """The answer to a greeting."""
        return Reply(250, "", (self._settings.hostname,)) if verb is Verb.HELO else self._long_hello

    def refusal_of_mail(self) -> Reply | None:
        """Why MAIL must wait (RFC 6409 4.3, RFC 3207 4)."""
        if self.is_logged_in or not self._settings.auth_required:
            return None
        return answers.TLS_REQUIRED if self.offers.starttls and not self.offers.auth else answers.LOGIN_REQUIRED

    def refusal_of_auth(self, mechanism: str) -> Reply | None:
        """Why AUTH cannot begin (RFC 4954 4)."""
        if not self._settings.auth_mechanisms:
            return NOT_IMPLEMENTED
        if self.is_logged_in:
            return answers.ALREADY_LOGGED_IN
        if not self.offers.auth:
            return answers.NOT_IN_CLEAR
        return None if mechanism in self.offers.auth and mechanism in MECHANISMS else answers.MECHANISM_UNKNOWN

    def refusal_of_starttls(self) -> Reply | None:
        """Why TLS cannot start."""
        if not self._settings.starttls:
            return NOT_IMPLEMENTED
        return answers.ALREADY_TLS if self.is_tls else None

    def _refresh(self) -> None:
        may_log_in = self.is_tls or self._is_clear_allowed
        self.offers, self._long_hello = _welcome(self._settings, self.is_tls, may_log_in, *self._announced)


@functools.lru_cache(maxsize=256)
def _welcome(settings: ServerSettings, tls: bool, auth: bool, mail_max: int, rcpt_max: int) -> tuple[Offers, Reply]:
    """What EHLO offers, and its reply: the same for nearly all clients of a listener."""
    offers = msgspec.structs.replace(settings.offers(tls=tls, auth=auth), limits=Limits(mail_max, rcpt_max))
    return offers, Reply(250, "", (settings.hostname, *offers.lines()))


@functools.lru_cache(maxsize=64)
def shared_of(settings: ServerSettings) -> tuple[ContentLimits, Reply, Reply, Reply]:
    """What all sessions of a listener share: bounds, greeting, farewell, and the refusal of what is too large."""
    protocol = "LMTP" if settings.dialect is Dialect.LMTP else "ESMTP"
    return (
        settings.content_limits,
        reply(220, "", f"{settings.hostname} {protocol} {settings.banner}"),
        reply(221, "2.0.0", f"{settings.hostname} closing the connection"),
        answers.too_large(settings.size_limit),
    )
