"""The values of a configuration, one struct a section, defaults as docs/configuration.md has them. No rules, no reading."""

import enum
from pathlib import Path

import msgspec

from posthouse.smtp.content import LineEndings


class ListenerRole(enum.StrEnum):
    """`role` of a [[listener]]."""

    RELAY = "relay"
    SUBMISSION = "submission"
    COLLECTOR = "collector"
    LAB = "lab"


class ProxyUse(enum.StrEnum):
    """`proxy` of a [[listener]]: no PROXY header is understood, or none means no session."""

    OFF = "off"
    REQUIRED = "required"


class TlsSettings(msgspec.Struct, frozen=True):
    """`tls` of a [[listener]]; paths are absolute by now."""

    certificate: Path
    key: Path
    implicit: bool = False


class LabSettings(msgspec.Struct, frozen=True):
    """`lab` of a [[listener]] of role lab. `until` is in seconds since 1970."""

    destinations: tuple[str, ...]
    until: float
    networks: tuple[str, ...] = ("127.0.0.0/8", "::1")


class ListenerSettings(msgspec.Struct, frozen=True):
    """One [[listener]]."""

    host: str
    port: int
    role: ListenerRole = ListenerRole.RELAY
    tls: TlsSettings | None = None
    proxy: ProxyUse = ProxyUse.OFF
    proxies: tuple[str, ...] = ()
    line_endings: LineEndings = LineEndings.STRICT
    lab: LabSettings | None = None


class RelaySettings(msgspec.Struct, frozen=True):
    """[relay]. Domains are A-labels in lower case; `recipients` is the file of the only valid ones, None: no list."""

    local_domains: tuple[str, ...] = ()
    relay_domains: tuple[str, ...] = ()
    trusted_networks: tuple[str, ...] = ("127.0.0.1", "::1")
    gateways_as_strangers: tuple[str, ...] = ()
    gateways_trusted: tuple[str, ...] = ()
    recipients: Path | None = None


class LoginSettings(msgspec.Struct, frozen=True):
    """`login` of a [[route]]: what we say to the smart host."""

    user: str
    password_file: Path


class RouteSettings(msgspec.Struct, frozen=True):
    """One [[route]]. `to` is tried in order; `reverse_path` rewrites the envelope's ("" leaves it)."""

    domain: tuple[str, ...]
    to: tuple[str, ...]
    login: LoginSettings | None = None
    tls: str = "opportunistic"  # opportunistic | required | verified | never
    source_address: str = ""
    hello_name: str = ""
    reverse_path: str = ""
    allow_networks: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    concurrency: int = 20


class LimitSettings(msgspec.Struct, frozen=True):
    """[limits]. Sizes are octets, times seconds."""

    message_size: int = 50_000_000
    header_size: int = 256 * 1024
    recipients_stranger: int = 100
    recipients_trusted: int = 1000
    hops: int = 100
    connections: int = 10_000
    connections_per_client: int = 50
    session_messages: int = 1000
    errors_slow: int = 5
    errors_close: int = 10
    command_timeout: float = 300.0
    content_timeout: float = 600.0
    minimum_rate: int = 500
    free_space: int = 1_000_000_000


class RetrySettings(msgspec.Struct, frozen=True):
    """[retry]. Seconds."""

    first: float = 300.0
    longest: float = 4 * 3600.0
    factor: float = 1.7
    give_up: float = 5 * 86400.0
    delay_notice: float = 4 * 3600.0


class ResolverSettings(msgspec.Struct, frozen=True):
    """[resolver]. Empty `servers`: the system's."""

    servers: tuple[tuple[str, int], ...] = ()
    timeout: float = 5.0


class HistorySettings(msgspec.Struct, frozen=True):
    """[history]: how long `why` and `usage` remember, and how much disk that may take."""

    days: int = 14
    size: int = 2_000_000_000


class LogSettings(msgspec.Struct, frozen=True):
    """[log]. `format` is auto (readable on a terminal, JSON otherwise), text or json."""

    format: str = "auto"
    level: str = "info"


class MetricsSettings(msgspec.Struct, frozen=True):
    """[metrics]. port 0: no endpoint."""

    host: str = ""
    port: int = 0


class CollectorSettings(msgspec.Struct, frozen=True):
    """[collector]: what listeners of role collector take, and where other testers may ask. Empty `domains`: no collector;
    port 0 of `ask_port`: nobody but this machine may ask. Seconds."""

    domains: tuple[str, ...] = ()
    keep: float = 30 * 86400.0
    per_client: int = 600
    in_all: int = 6000
    ask_host: str = ""
    ask_port: int = 0


class TesterSettings(msgspec.Struct, frozen=True):
    """[tester]: how `test` and `scan` show themselves, what they may test, and which collector they ask."""

    collector: str = ""
    collector_url: str = ""
    key_file: Path | None = None
    hello_name: str = ""
    reverse_path: str = ""
    contact: str = ""
    own_networks: tuple[str, ...] = ()
    do_not_test: tuple[str, ...] = ()
    do_not_test_file: Path | None = None
    tests_per_target: int = 24
    tests_per_day: int = 1000


class WebSettings(msgspec.Struct, frozen=True):
    """[web]. Port 0 lets the kernel choose; `is_on` and `is_call_on` say whether there is a listener at all. `keep` is seconds,
    rates are tests an hour."""

    host: str = ""
    port: int = 0
    is_on: bool = False
    call_host: str = ""
    call_port: int = 0
    is_call_on: bool = False
    url: str = ""
    ports: tuple[int, ...] = (25, 465, 587, 2525)
    proxies: tuple[str, ...] = ()
    at_once: int = 20
    queue: int = 200
    tests_per_address: int = 10
    tests_in_all: int = 600
    keep: float = 7 * 86400.0
    private_hosts: bool = False


class WatchSettings(msgspec.Struct, frozen=True):
    """[watch]: the tester's URL, with a slash at its end, and seconds between two tests. "": nobody is asked."""

    tester: str = ""
    every: float = 86400.0


class Config(msgspec.Struct, frozen=True):
    """A whole configuration, checked. `source` is the file, None for the embedded default."""

    hostname: str
    data_dir: Path
    workers: int
    source: Path | None = None
    postmaster: str = ""
    listeners: tuple[ListenerSettings, ...] = ()
    relay: RelaySettings = RelaySettings()
    aliases: tuple[tuple[str, tuple[str, ...]], ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    limits: LimitSettings = LimitSettings()
    retry: RetrySettings = RetrySettings()
    resolver: ResolverSettings = ResolverSettings()
    history: HistorySettings = HistorySettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()
    collector: CollectorSettings = CollectorSettings()
    tester: TesterSettings = TesterSettings()
    web: WebSettings = WebSettings()
    watch: WatchSettings = WatchSettings()
    accounts: Path | None = None
    user: str = ""

    @property
    def place(self) -> str:
        """Where it stands, for people."""
        return str(self.source or "the embedded default")
