"""Opening a session with a next hop: its addresses in order, greeting, EHLO, STARTTLS, login.

What decides here: any answer but a welcome lets the next address be tried; TLS that fails is done without only where the route
says opportunistic and no password is at stake; a password is said in the clear to another machine only where the route
says `never`, which `check` and `serve` mind.
"""

import functools
import ipaddress
import ssl
from pathlib import Path

import msgspec

from posthouse.mail.reason import Reason, Slug
from posthouse.mail.status import Stage
from posthouse.net.client import NO_REPLY, ClientChannel, ClientTimeouts, Endpoint, Loss, PeerLost, connect
from posthouse.net.tls import TlsError, client_context
from posthouse.net.transcript import Transcript
from posthouse.smtp.driving import LocalProtocolError
from posthouse.smtp.event import Verb
from posthouse.smtp.reply import Reply
from posthouse.transports.api import Login, TlsMode, Unavailable
from posthouse.transports.verdict import said, turned_away, unavailable

CONNECTING_SECONDS = 120.0
"""For all endpoints of a next hop together, as long as each gets LEAST_CONNECTING_SECONDS."""

LEAST_CONNECTING_SECONDS = 5.0


class SmtpSettings(msgspec.Struct, frozen=True):
    """One next hop, and how we speak to it. `endpoints` are tried in order.

    `idle_seconds`: how long a connection is kept when nothing waits. `messages`: most on one connection, 0 for no limit of
    ours. `recipients`: most in one transaction. `source_address` "" leaves the choice to the system.
    """

    endpoints: tuple[Endpoint, ...]
    hello_name: str
    dialect: Verb = Verb.EHLO
    tls: TlsMode = TlsMode.OPPORTUNISTIC
    implicit_tls: bool = False
    ca_file: Path | None = None
    login: Login | None = None
    source_address: str = ""
    idle_seconds: float = 5.0
    messages: int = 0
    recipients: int = 100
    timeouts: ClientTimeouts = ClientTimeouts()
    transcript: Transcript | None = None


class _Refused(Exception):
    """The next hop answered no before a session was open."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class _NotAsDemanded(Exception):
    """The next hop would have us, but not on the route's terms."""

    def __init__(self, slug: Slug, status: str, words: str, reply: Reply = NO_REPLY) -> None:
        super().__init__(words)
        self.slug = slug
        self.status = status
        self.words = words
        self.reply = reply


async def open_session(settings: SmtpSettings) -> tuple[ClientChannel, Endpoint] | Unavailable:
    """A channel on which a transaction may begin, with the endpoint it leads to; else why no endpoint can be used."""
    troubles: list[Unavailable] = []
    reachable = [endpoint for endpoint in settings.endpoints if _is_reachable_from(settings.source_address, endpoint)]
    settings = _share_connecting(settings, len(reachable))
    for endpoint in reachable:
        opened = await _Opening(settings, endpoint).run()
        if isinstance(opened, ClientChannel):
            return opened, endpoint
        troubles.append(opened)
    for trouble in reversed(troubles):
        if not trouble.is_permanent:
            return trouble
    if troubles:
        return troubles[-1]
    words = "the next hop has no address that can be reached"
    if settings.source_address and settings.endpoints:
        words += f" from {settings.source_address}; it has none of that family"
    return Unavailable(Reason(Slug.NO_ADDRESS, words), "4.4.4")


def _share_connecting(settings: SmtpSettings, endpoints: int) -> SmtpSettings:
    """A name with a hundred silent addresses gets no more of our time than one with four."""
    share = max(LEAST_CONNECTING_SECONDS, CONNECTING_SECONDS / max(endpoints, 1))
    if share >= settings.timeouts.connect:
        return settings
    return msgspec.structs.replace(settings, timeouts=msgspec.structs.replace(settings.timeouts, connect=share))


class _Opening:
    """One endpoint's opening; remembers the step, so that a loss is told from where it happened."""

    def __init__(self, settings: SmtpSettings, endpoint: Endpoint) -> None:
        self._settings = settings
        self._endpoint = endpoint
        self._stage = Stage.CONNECT
        self._uses_tls = settings.tls is not TlsMode.NEVER and not settings.implicit_tls and not endpoint.socket_path
        self._channel: ClientChannel | None = None

    async def run(self) -> ClientChannel | Unavailable:
        """The channel, or why not. A TLS session that fails is followed by one in the clear, where that is allowed."""
        try:
            return await self._open()
        except PeerLost as lost:
            if self._stage is not Stage.TLS or lost.loss is Loss.BROKEN or not self._may_do_without_tls():
                return unavailable(lost, self._stage, str(self._endpoint))
        except _Refused as refused:
            return turned_away(refused.reply, self._stage, str(self._endpoint))
        except _NotAsDemanded as fault:
            return self._not_as_demanded(fault)
        except LocalProtocolError as error:
            words = f"was not spoken to: {error}; correct hello_name or login"
            return self._not_as_demanded(_NotAsDemanded(Slug.CONFIGURATION, "4.3.5", words))
        # RFC 7435: mail servers with broken TLS are reached in the clear rather than not at all.
        self._uses_tls = False
        return await self.run()

    async def _open(self) -> ClientChannel:
        settings = self._settings
        self._stage = Stage.CONNECT
        self._channel = None
        try:
            implicit = self._context() if settings.implicit_tls else None
            self._channel = channel = await connect(
                self._endpoint,
                settings.timeouts,
                dialect=settings.dialect,
                source_address=settings.source_address,
                implicit_tls=implicit,
                transcript=settings.transcript,
            )
            self._stage = Stage.GREETING
            await self._expect_welcome(channel)
            await self._say_hello(channel)
            if self._uses_tls:
                await self._start_tls(channel)
            if settings.login is not None:
                await self._log_in(channel, settings.login)
        except BaseException:
            if self._channel is not None:
                self._channel.abort()
            raise
        return channel

    async def _expect_welcome(self, channel: ClientChannel) -> None:
        await channel.flush()
        reply = (await channel.answer()).reply
        if not reply.is_positive:
            raise _Refused(reply)

    async def _say_hello(self, channel: ClientChannel) -> None:
        if self._stage is not Stage.TLS:
            self._stage = Stage.HELLO
        channel.engine.hello(self._settings.hello_name)
        await self._expect_welcome(channel)

    async def _start_tls(self, channel: ClientChannel) -> None:
        must = self._settings.tls is not TlsMode.OPPORTUNISTIC
        if not channel.engine.offers.starttls:
            if must:
                raise _NotAsDemanded(Slug.TLS_FAILED, "4.7.4", "does not offer STARTTLS, which the route demands")
            return
        self._stage = Stage.TLS
        channel.engine.starttls()
        await channel.flush()
        reply = (await channel.answer()).reply
        if not reply.is_positive:
            if must or reply.code == 421:
                words = f"refused STARTTLS, which the route demands: {said(reply)}"
                raise _NotAsDemanded(Slug.TLS_FAILED, "4.7.4", words, reply)
            return
        await channel.start_tls(self._context(), self._endpoint.name or self._endpoint.address)
        await self._say_hello(channel)

    async def _log_in(self, channel: ClientChannel, login: Login) -> None:
        self._stage = Stage.AUTH
        if not (channel.tls_description or self._may_be_heard()):
            words = (
                'speaks no TLS, and a password is not sent in the clear; set tls = "required", or "never" to send it so'
            )
            raise _NotAsDemanded(Slug.LOGIN_REFUSED, "4.7.11", words)
        for mechanism in ("PLAIN", "LOGIN"):
            if mechanism in channel.engine.offers.auth:
                break
        else:
            raise _NotAsDemanded(Slug.LOGIN_REFUSED, "4.7.4", "offers no login by PLAIN or LOGIN")
        channel.engine.auth(mechanism, login.user, login.password)
        await channel.flush()
        reply = (await channel.answer()).reply
        if not reply.is_positive:
            words = f"refused the login of {login.user}: {said(reply)}; correct the route's login"
            raise _NotAsDemanded(Slug.LOGIN_REFUSED, "4.7.8", words, reply)

    def _may_be_heard(self) -> bool:
        """A password in the clear goes to this machine only, or where the configuration says in so many words: no TLS."""
        if self._settings.tls is TlsMode.NEVER or self._endpoint.socket_path:
            return True
        return ipaddress.ip_address(self._endpoint.address).is_loopback

    def _may_do_without_tls(self) -> bool:
        return self._uses_tls and self._settings.tls is TlsMode.OPPORTUNISTIC and self._settings.login is None

    def _context(self) -> ssl.SSLContext:
        verify = self._settings.tls is TlsMode.VERIFIED
        try:
            return _cached_context(verify, self._settings.ca_file if verify else None)
        except TlsError as error:
            raise PeerLost(Loss.TLS, f"was not asked for TLS: {error.words}") from error

    def _not_as_demanded(self, fault: _NotAsDemanded) -> Unavailable:
        remote = str(self._endpoint)
        diagnostic = said(fault.reply) if fault.reply.code else ""
        return Unavailable(Reason(fault.slug, f"{remote} {fault.words}"), fault.status, remote, diagnostic)


@functools.cache
def _cached_context(verify: bool, ca_file: Path | None) -> ssl.SSLContext:
    """Loading the system's authorities takes tens of milliseconds; once a process is enough."""
    return client_context(verify=verify, ca_file=ca_file)


def _is_reachable_from(source_address: str, endpoint: Endpoint) -> bool:
    if not source_address or endpoint.socket_path:
        return True
    return ipaddress.ip_address(source_address).version == ipaddress.ip_address(endpoint.address).version
