"""What stands in `to` of a [[route]], checked and in full: A-labels, ports filled in, paths absolute. The grammar is relay.route's."""

import ipaddress
from pathlib import Path

import msgspec

from posthouse.config.values import Kind, host_name, text
from posthouse.relay.route import Hop, HopKind, parse_hop

FINAL = frozenset({HopKind.LMTP, HopKind.MAILDIR, HopKind.PIPE})
"""Delivery here, after which no other server sees the mail."""

_LATER = ("uucp", "ftn")


def next_hop_in(directory: Path) -> Kind[str]:
    """Kind of value: a next hop's URL. Relative Maildirs are taken from `directory`."""

    def read(value: object) -> str:
        return str(read_next_hop(text(value), directory))

    return read


def read_next_hop(url: str, directory: Path) -> Hop:
    """A next hop as the file has it. ValueError says what is wrong and how to write it."""
    scheme, _, rest = url.partition(":")
    if scheme in _LATER:
        raise ValueError(f"{url!r}: {scheme}: is known but not built yet in this version")
    if scheme == HopKind.PIPE and rest:
        raise ValueError(f"{url!r}: the program of pipe: stands in `command`, an array of arguments")
    if scheme in (HopKind.SMTP, HopKind.SMTPS, HopKind.LMTP) and not rest.startswith("//"):
        raise ValueError(f"{url!r} needs two slashes, {scheme}://{rest.lstrip('/')}")
    if scheme == HopKind.MAILDIR:
        return Hop(HopKind.MAILDIR, path=_maildir(url, rest, directory))
    if "@" in rest:
        raise ValueError(f"{url!r}: a login stands in `login`, never in the URL")
    hop = parse_hop(url)
    return msgspec.structs.replace(hop, host=_host(hop.host)) if hop.host else hop


def _host(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return host_name(host)


def _maildir(url: str, rest: str, directory: Path) -> str:
    if not rest or rest.startswith("//"):
        raise ValueError(f"{url!r} needs a directory, maildir:/var/mail/example or maildir:/var/mail/{{local_part}}")
    fields = rest.replace("{local_part}", "")
    if "{" in fields or "}" in fields:
        raise ValueError(f"{url!r}: only {{local_part}} can be filled in")
    return str(directory / rest)
