"""One [[route]]."""

import ipaddress
from pathlib import Path

from posthouse.config import values
from posthouse.config.next_hop import next_hop_in
from posthouse.config.settings import LoginSettings, RouteSettings
from posthouse.config.table import Table
from posthouse.relay.route import HopKind, parse_hop
from posthouse.transports.api import COMMAND_FIELDS

_FIELDS = tuple(f"{{{name}}}" for name in COMMAND_FIELDS)


def read_route(table: Table, directory: Path) -> RouteSettings:
    """A [[route]] with its next hops in their full form."""
    to = table.need("to", values.one_or_many(next_hop_in(directory)))
    login = table.table("login", "route.login")
    command = table.take("command", values.list_of(_argument), ())
    _check_command(table, to, command)
    tls_words = values.word_of("opportunistic", "required", "verified", "never")
    return RouteSettings(
        domain=table.need("domain", values.one_or_many(values.domain_pattern)),
        to=to,
        login=_login(login, directory) if login else None,
        tls=table.take("tls", tls_words, "required" if login and not _all_loopback(to) else "opportunistic"),
        source_address=table.take("source_address", values.ip_address, ""),
        hello_name=table.take("hello_name", values.host_name, ""),
        reverse_path=table.take("reverse_path", _reverse_path, ""),
        allow_networks=table.take("allow_networks", values.list_of(values.network), ()),
        command=(str(directory / command[0]), *command[1:]) if command else (),
        concurrency=table.take("concurrency", values.whole(1, 10_000), 20),
    )


def _login(table: Table, directory: Path) -> LoginSettings:
    return LoginSettings(
        user=table.need("user", values.text),
        password_file=table.need("password_file", values.path_in(directory)),
    )


def _all_loopback(to: tuple[str, ...]) -> bool:
    """A password may go in the clear to this machine only."""
    for url in to:
        host = parse_hop(url).host
        if not host or (not host[0].isdigit() and ":" not in host):
            return False
        if not ipaddress.ip_address(host).is_loopback:
            return False
    return True


def _reverse_path(value: object) -> str:
    """A mail address; `{local_part}` may stand for the one that came."""
    written = values.text(value)
    local_part, _, domain = written.rpartition("@")
    if local_part == "{local_part}":
        return f"{local_part}@{values.host_name(domain)}"
    return values.mail_address(value)


def _argument(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("must be a string")
    rest = value
    for field in _FIELDS:
        rest = rest.replace(field, "")
    if "{" in rest or "}" in rest:
        raise ValueError(f"has {value!r}: only {', '.join(_FIELDS)} can be filled in")
    return value


def _check_command(table: Table, to: tuple[str, ...], command: tuple[str, ...]) -> None:
    is_pipe = f"{HopKind.PIPE}:" in to
    if is_pipe and not command:
        raise table.fault("command", "is missing: pipe: needs the program and its arguments as an array")
    if command and not is_pipe:
        raise table.fault("command", 'counts only with to = ["pipe:"]')
    if not command:
        return
    if "/" not in command[0]:
        raise table.fault(
            "command", f"has {command[0]!r} as its program; give its path, such as /usr/local/bin/{command[0]}"
        )
    if "{" in command[0]:
        raise table.fault("command", "may not choose its program by the recipient")
