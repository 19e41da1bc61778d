"""What stands in `to` of a [[route]]: where mail goes, as one URL a next hop."""

import enum
import ipaddress
from pathlib import Path

import msgspec

from posthouse.config.values import Kind, host_name, split_port, text


class NextHopKind(enum.StrEnum):
    """The ways to hand a mail on."""

    MX = "mx"
    SMTP = "smtp"
    SMTPS = "smtps"
    LMTP = "lmtp"
    MAILDIR = "maildir"
    PIPE = "pipe"


_PORTS = {NextHopKind.MX: 25, NextHopKind.SMTP: 25, NextHopKind.SMTPS: 465, NextHopKind.LMTP: 24}
_LATER = ("uucp", "ftn")
FINAL = frozenset({NextHopKind.LMTP, NextHopKind.MAILDIR, NextHopKind.PIPE})
"""Delivery here, after which no other server sees the mail."""


class NextHop(msgspec.Struct, frozen=True):
    """One next hop. `host` is a name (A-labels) or an address, "" where none is meant; `path` of a Maildir or socket.

    MX with no `host` is the recipient's own domain; with one, that domain's MX records.
    """

    kind: NextHopKind
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """The URL in its full form, the one that Config holds."""
        if self.kind is NextHopKind.MX:
            return f"mx:{self.host}:{self.port}" if self.host else "mx:"
        if self.path or self.kind is NextHopKind.PIPE:
            return f"{self.kind}:{'//' if self.kind is NextHopKind.LMTP else ''}{self.path}"
        return f"{self.kind}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_next_hop(url: str, directory: Path = Path("/")) -> NextHop:
    """A next hop from its URL; relative Maildirs are taken from `directory`. ValueError says what is wrong and how to write it."""
    scheme, colon, rest = url.partition(":")
    if scheme in _LATER:
        raise ValueError(f"{url!r}: {scheme}: is known but not built yet in this version")
    if not colon or scheme not in list(NextHopKind):
        raise ValueError(
            f"{url!r} is not a next hop; write mx:, mx:NAME:PORT, smtp://HOST:PORT, smtps://HOST:PORT, "
            f"lmtp://HOST:PORT, lmtp:///SOCKET, maildir:PATH or pipe:"
        )
    kind = NextHopKind(scheme)
    if kind is NextHopKind.MX:
        return NextHop(kind, *_host_and_port(url, rest, _PORTS[kind])) if rest else NextHop(kind)
    if kind is NextHopKind.PIPE:
        if rest:
            raise ValueError(f"{url!r}: the program of pipe: stands in `command`, an array of arguments")
        return NextHop(kind)
    if kind is NextHopKind.MAILDIR:
        return NextHop(kind, path=_maildir(url, rest, directory))
    if not rest.startswith("//"):
        raise ValueError(f"{url!r} needs two slashes, {scheme}://{rest.lstrip('/')}")
    if kind is NextHopKind.LMTP and rest.startswith("///"):
        return NextHop(kind, path=rest[2:])
    return NextHop(kind, *_host_and_port(url, rest[2:], _PORTS[kind]))


def next_hop_in(directory: Path) -> Kind[str]:
    """Kind of value: a next hop's URL in its full form."""

    def read(value: object) -> str:
        return str(parse_next_hop(text(value), directory))

    return read


def _maildir(url: str, rest: str, directory: Path) -> str:
    if not rest or rest.startswith("//"):
        raise ValueError(f"{url!r} needs a directory, maildir:/var/mail/example or maildir:/var/mail/{{local_part}}")
    fields = rest.replace("{local_part}", "")
    if "{" in fields or "}" in fields:
        raise ValueError(f"{url!r}: only {{local_part}} can be filled in")
    return str(directory / rest)


def _host_and_port(url: str, authority: str, default_port: int) -> tuple[str, int]:
    if "@" in authority:
        raise ValueError(f"{url!r}: a login stands in `login`, never in the URL")
    authority = authority.removesuffix("/")
    if any(character in authority for character in "/?#"):
        raise ValueError(f"{url!r} has more than a host and a port in it")
    host, port = split_port(authority, default_port)
    try:
        return str(ipaddress.ip_address(host)), port
    except ValueError:
        return host_name(host), port
