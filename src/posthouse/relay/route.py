"""Where mail goes: the [[route]] table as values.

A Route says which next hops to try, in order, for a domain; it holds names, never resolved addresses. Several next hops are
the way round a known problem: the second is tried when the first can't be used at all.
"""

import enum
from urllib.parse import unquote, urlsplit

import msgspec

from posthouse.policy.domains import DomainTable
from posthouse.policy.networks import NetworkSet
from posthouse.smtp.address import Path, parse_mailbox
from posthouse.transports.api import Login, TlsMode

SMTP_PORT = 25
SUBMISSIONS_PORT = 465
LMTP_PORT = 24


class RouteError(ValueError):
    """A next hop or a route that can't be meant; the sentence says what is expected."""


class HopKind(enum.StrEnum):
    """How a next hop is reached."""

    MX = "mx"
    SMTP = "smtp"
    SMTPS = "smtps"
    LMTP = "lmtp"
    MAILDIR = "maildir"
    PIPE = "pipe"


class Hop(msgspec.Struct, frozen=True):
    """One entry of `to`. `host` "" with MX means the mail's own domain; `path` is a socket, a Maildir or "" (pipe)."""

    kind: HopKind
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        match self.kind:
            case HopKind.MX:
                return f"mx:{host}:{self.port}" if host else "mx:"
            case HopKind.SMTP | HopKind.SMTPS:
                return f"{self.kind}://{host}:{self.port}"
            case HopKind.LMTP:
                return f"lmtp://{self.path}" if self.path else f"lmtp://{host}:{self.port}"
            case _:
                return f"{self.kind}:{self.path}"


def _host_and_port(text: str, default_port: int, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise RouteError(f"{url}: {error}") from error
    if not host or parts.path or parts.query or parts.username:
        raise RouteError(f"{url}: expected a host and a port, as in smtp://mx.example.org:25")
    return host, port or default_port


def parse_hop(url: str) -> Hop:
    """A next hop from its URL: mx:, mx:NAME:PORT, smtp://, smtps://, lmtp://, maildir:, pipe:. RouteError otherwise."""
    scheme, colon, rest = url.partition(":")
    if not colon:
        raise RouteError(f"{url}: expected a scheme, as in mx: or smtp://mx.example.org:25")
    match scheme:
        case "mx":
            return Hop(HopKind.MX, *_host_and_port(rest, SMTP_PORT, url)) if rest else Hop(HopKind.MX, "", SMTP_PORT)
        case "smtp" | "smtps" if rest.startswith("//"):
            port = SMTP_PORT if scheme == "smtp" else SUBMISSIONS_PORT
            return Hop(HopKind(scheme), *_host_and_port(rest[2:].rstrip("/"), port, url))
        case "lmtp" if rest.startswith("///"):
            return Hop(HopKind.LMTP, path=unquote(rest[2:]))
        case "lmtp" if rest.startswith("//"):
            return Hop(HopKind.LMTP, *_host_and_port(rest[2:].rstrip("/"), LMTP_PORT, url))
        case "maildir" if rest:
            return Hop(HopKind.MAILDIR, path=rest)
        case "pipe" if not rest:
            return Hop(HopKind.PIPE)
    raise RouteError(
        f"{url}: not a next hop; expected mx:, mx:NAME:PORT, smtp://, smtps://, lmtp://, maildir:PATH or pipe:"
    )


class Route(msgspec.Struct, frozen=True):
    """One [[route]]. `new_reverse_path` is "" when the reverse-path stays as it is."""

    patterns: tuple[str, ...]
    hops: tuple[Hop, ...]
    login: Login | None = None
    tls: TlsMode = TlsMode.OPPORTUNISTIC
    source_address: str = ""
    hello_name: str = ""
    new_reverse_path: str = ""
    allow_networks: NetworkSet | None = None
    command: tuple[str, ...] = ()
    concurrency: int = 20

    def reverse_path(self, path: Path) -> Path:
        """The reverse-path to use on this route; the null path is never rewritten (RFC 5321 4.5.5)."""
        if not self.new_reverse_path or path.is_null:
            return path
        local_part, _, domain = self.new_reverse_path.rpartition("@")
        if local_part == "{local_part}":
            return Path(path.local_part, domain)
        return parse_mailbox(self.new_reverse_path.encode())


class NextHop(msgspec.Struct, frozen=True):
    """A Hop made reachable: `hosts` are (name, address, port) in the order to try; empty for Maildir and pipe."""

    hop: Hop
    route: Route
    hosts: tuple[tuple[str, str, int], ...] = ()


class RouteTable:
    """Which Route serves a destination."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self.routes = routes
        self._table = DomainTable({pattern: route for route in routes for pattern in route.patterns})

    def find(self, destination: str) -> Route | None:
        """The Route for a domain, or for a next hop's URL that an operator chose (`queue reroute`); None when none fits."""
        if ":" in destination and not destination.startswith("["):
            return Route((destination,), (parse_hop(destination),))
        return self._table.lookup(destination)
