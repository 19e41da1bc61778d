"""From a Config to the rooms' values: rules, routes, plans for listeners, transports. The one place that knows every scheme."""

import ssl
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path as FilePath

from posthouse.config import (
    Config,
    ConfigError,
    LineEndings,
    ListenerRole,
    ListenerSettings,
    ProxyUse,
    RouteSettings,
    read_password,
)
from posthouse.dns.exchange import Server
from posthouse.dns.mx import Ourselves
from posthouse.dns.resolver import Resolver
from posthouse.net.client import Endpoint
from posthouse.net.listen import address_text
from posthouse.net.server import Handler, ListenerPlan, ServerProtocol, Timeouts
from posthouse.net.tls import TlsError, server_context
from posthouse.policy.facts import Role
from posthouse.policy.networks import NetworkSet, parse_address
from posthouse.policy.rules import Rules
from posthouse.relay.backoff import RetryPlan
from posthouse.relay.intake import Intake
from posthouse.relay.route import Hop, HopKind, NextHop, Route, RouteTable, parse_hop
from posthouse.relay.session import Desk, Session, Verify
from posthouse.serve.collecting import collector_engine, make_reception
from posthouse.serve.rules import rules_of as rules_of  # noqa: PLC0414 - for those who put together the rest as well
from posthouse.smtp.address import Path
from posthouse.smtp.event import Verb
from posthouse.smtp.server import ServerConnection, ServerSettings
from posthouse.spool.api import Clock
from posthouse.spool.history import HistoryLimits
from posthouse.spool.space import SpaceLimits
from posthouse.spool.sqlite import SpoolSettings
from posthouse.tester.reception import CollectorDesk
from posthouse.transports.api import Login, TlsMode, Transport
from posthouse.transports.maildir import MaildirSettings, MaildirTransport
from posthouse.transports.opening import SmtpSettings
from posthouse.transports.pipe import PipeSettings, PipeTransport
from posthouse.transports.smtp import SmtpTransport

LOCAL_PLACE = -1
"""The local socket's place where listeners are counted."""

LOCAL_LISTENER = "local"
"""How the local socket is called where listeners are named."""

POSTMASTER_BOX = "postmaster"
"""The Maildir in the data directory for mail to `<postmaster>` when nobody is named to get it."""


def routes_of(config: Config) -> RouteTable:
    """The route table of a configuration, passwords read. ConfigError."""
    routes = tuple(_route(settings) for settings in config.routes)
    box = Hop(HopKind.MAILDIR, path=str(config.data_dir / POSTMASTER_BOX))
    return RouteTable((*routes, Route(("",), (box,))))


def _route(settings: RouteSettings) -> Route:
    login = settings.login
    return Route(
        settings.domain,
        tuple(parse_hop(url) for url in settings.to),
        Login(login.user, read_password(login.password_file)) if login else None,
        TlsMode(settings.tls),
        settings.source_address,
        settings.hello_name,
        settings.reverse_path,
        NetworkSet.parse(settings.allow_networks) if settings.allow_networks else None,
        settings.command,
        settings.concurrency,
    )


def retry_plan_of(config: Config) -> RetryPlan:
    """[retry] as the scheduler's plan."""
    retry = config.retry
    return RetryPlan(retry.first, retry.longest, retry.factor, retry.give_up, retry.delay_notice)


def ourselves_of(config: Config) -> Ourselves:
    """By what a next hop may be known to be this server: its host name, and the addresses its listeners name."""
    addresses = []
    for listener in config.listeners:
        try:
            address = ip_address(listener.host)
        except ValueError:
            continue
        if not address.is_loopback and not address.is_unspecified:
            addresses.append(address)
    return Ourselves((config.hostname.lower(),), tuple(addresses))


def tls_contexts_of(config: Config) -> dict[int, ssl.SSLContext]:
    """A TLS context for each listener that has a certificate, by its place; one each, since a session ticket of one must
    not open another. ConfigError names the file that can't be used."""
    contexts = {}
    for place, listener in enumerate(config.listeners):
        if listener.tls is not None:
            try:
                contexts[place] = server_context(listener.tls.certificate, listener.tls.key)
            except TlsError as error:
                raise ConfigError(f"the listener on {listener_name(listener)}: {error.words}") from error
    return contexts


def listener_name(listener: ListenerSettings, port: int = 0) -> str:
    """The listener as metrics and logs name it: "192.0.2.1:25". `port` is the bound one, where the configuration says 0."""
    return address_text(listener.host, listener.port or port)


def engine_settings_of(config: Config, listener: ListenerSettings | None) -> ServerSettings:
    """What the protocol engine offers and bounds on a listener; without one, on the local socket."""
    limits = config.limits
    return ServerSettings(
        hostname=config.hostname,
        size_limit=limits.message_size,
        header_limit=limits.header_size,
        auth_mechanisms=() if listener is None or listener.role is ListenerRole.LAB else ("PLAIN", "LOGIN"),
        starttls=listener is not None and listener.tls is not None and not listener.tls.implicit,
        auth_required=listener is not None and listener.role is ListenerRole.SUBMISSION,
        normalize=listener is not None and listener.line_endings is LineEndings.NORMALIZE,
        errors_slow=limits.errors_slow,
        errors_close=limits.errors_close,
        mail_max=limits.session_messages,
        rcpt_max=limits.recipients_trusted,
    )


def timeouts_of(config: Config) -> Timeouts:
    """[limits]' times for the sessions."""
    limits = config.limits
    return Timeouts(limits.command_timeout, limits.content_timeout, limits.minimum_rate)


_ROLES = {
    ListenerRole.RELAY: Role.RELAY,
    ListenerRole.SUBMISSION: Role.SUBMISSION,
    ListenerRole.LAB: Role.LAB,
}


def desk_of(
    config: Config, listener: ListenerSettings | None, rules: Rules, intake: Intake, clock: Clock, verify: Verify | None
) -> Desk:
    """What the sessions of a listener share; without a listener, those of the local socket."""
    return Desk(
        role=Role.LOCAL if listener is None else _ROLES[listener.role],
        hostname=config.hostname,
        listener=LOCAL_LISTENER if listener is None else listener_name(listener),
        intake=intake,
        rules=rules,
        clock=clock,
        verify=None if listener is None else verify,
        most_hops=config.limits.hops,
        most_messages=config.limits.session_messages,
        lab="" if listener is None or listener.lab is None else listener_name(listener),
    )


def renew_desk(desk: Desk, config: Config, listener: ListenerSettings | None, rules: Rules) -> None:
    """Puts a reloaded configuration in force for the next transactions of a listener's sessions."""
    fresh = desk_of(config, listener, rules, desk.intake, desk.clock, desk.verify)
    desk.role, desk.hostname, desk.rules = fresh.role, fresh.hostname, fresh.rules
    desk.most_hops, desk.most_messages, desk.lab = fresh.most_hops, fresh.most_messages, fresh.lab


def plan_of(
    config: Config,
    listener: ListenerSettings | None,
    desk: Desk | CollectorDesk,
    context: Callable[[], ssl.SSLContext | None],
) -> ListenerPlan:
    """How connections of a listener begin. `context` gives the certificate in force."""
    if isinstance(desk, CollectorDesk):
        return _collector_plan(config, listener, desk, context)
    settings = engine_settings_of(config, listener)

    def make_handler(protocol: ServerProtocol) -> Handler:
        return Session(desk, protocol, ServerConnection(settings))

    if listener is None:
        return ListenerPlan(make_handler, timeouts_of(config))
    proxies = NetworkSet.parse(listener.proxies) if listener.proxy is ProxyUse.REQUIRED else None
    return ListenerPlan(
        make_handler,
        timeouts_of(config),
        context if listener.tls else None,
        listener.tls is not None and listener.tls.implicit,
        None if proxies is None else lambda address: ip_address(address) in proxies,
        # Postfix does so too: who may relay anyway is not kept from it by a limit that is for strangers.
        lambda address: desk.role is Role.RELAY and desk.rules.trusts(parse_address(address)),
    )


def _collector_plan(
    config: Config,
    listener: ListenerSettings | None,
    desk: CollectorDesk,
    context: Callable[[], ssl.SSLContext | None],
) -> ListenerPlan:
    if listener is None:
        raise ConfigError("the local socket is no collector")
    settings = collector_engine(config, listener)
    return ListenerPlan(
        lambda protocol: make_reception(desk, protocol, settings),
        timeouts_of(config),
        context if listener.tls else None,
        listener.tls is not None and listener.tls.implicit,
    )


def shard_directory(config: Config, shard: int) -> FilePath:
    """Where a spool shard lies."""
    return config.data_dir / "spool" / str(shard)


def spool_settings_of(config: Config) -> SpoolSettings:
    """[limits] and [history] as the spool's settings."""
    history = HistoryLimits(config.history.days, config.history.size)
    return SpoolSettings(SpaceLimits(free_bytes=config.limits.free_space), history)


def transports_of(config: Config) -> Callable[[NextHop], Transport]:
    """A maker of transports: the one place that knows which scheme is which."""
    own_name = config.hostname

    def make_transport(next_hop: NextHop) -> Transport:
        hop, route = next_hop.hop, next_hop.route
        match hop.kind:
            case HopKind.MAILDIR:
                return MaildirTransport(MaildirSettings(hop.path, own_name))
            case HopKind.PIPE:
                return PipeTransport(PipeSettings(route.command))
            case _:
                return SmtpTransport(smtp_settings_of(next_hop, own_name))

    return make_transport


def smtp_settings_of(next_hop: NextHop, own_name: str) -> SmtpSettings:
    """How an SMTP or LMTP next hop is spoken to."""
    hop, route = next_hop.hop, next_hop.route
    if hop.path:
        endpoints: tuple[Endpoint, ...] = (Endpoint("localhost", socket_path=hop.path),)
    else:
        endpoints = tuple(Endpoint(name, address, port) for name, address, port in next_hop.hosts)
    return SmtpSettings(
        endpoints,
        route.hello_name or own_name,
        dialect=Verb.LHLO if hop.kind is HopKind.LMTP else Verb.EHLO,
        tls=route.tls,
        implicit_tls=hop.kind is HopKind.SMTPS,
        login=route.login,
        source_address=route.source_address,
    )


def is_local_destination(rules: Rules, destination: str) -> bool:
    """Mail waiting under this destination is delivered here, so it may leave while relaying is off."""
    return ":" not in destination and rules.is_local(Path(b"postmaster", destination))


def resolver_of(config: Config) -> Resolver:
    """The DNS as [resolver] says."""
    servers = tuple(Server(host, port) for host, port in config.resolver.servers)
    return Resolver(servers, timeout=config.resolver.timeout)
