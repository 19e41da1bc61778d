"""A first configuration file with remarks, from a few wishes. What it writes is read back by `load` before anyone keeps it."""

from collections.abc import Iterable

import msgspec


class Wishes(msgspec.Struct, frozen=True):
    """What `posthouse init` was told; what is empty stays out of the file, as a remark where it helps.

    `smart_host` is HOST:PORT or a next hop's URL; `local_domains` go to `deliver_to`, `relay_domains` to `relay_to`.
    """

    hostname: str = ""
    data_dir: str = ""
    postmaster: str = ""
    listen: tuple[str, ...] = ("127.0.0.1:2525",)
    trusted_networks: tuple[str, ...] = ("127.0.0.1", "::1")
    gateways_as_strangers: tuple[str, ...] = ()
    gateways_trusted: tuple[str, ...] = ()
    local_domains: tuple[str, ...] = ()
    deliver_to: str = ""
    relay_domains: tuple[str, ...] = ()
    relay_to: str = ""
    smart_host: str = ""
    smart_host_user: str = ""
    password_file: str = ""


def compose_config(wishes: Wishes) -> str:
    """The TOML text of a configuration."""
    parts = [_top(wishes), _listeners(wishes), _relay(wishes), _ALIASES, *_routes(wishes)]
    return "\n".join(parts)


def _quoted(text: str) -> str:
    """A TOML basic string."""
    escaped = "".join(
        f"\\u{ord(character):04X}" if character < " " or character in '"\\\x7f' else character for character in text
    )
    return f'"{escaped}"'


def _array(items: Iterable[str]) -> str:
    return f"[{', '.join(map(_quoted, items))}]"


def _line(key: str, value: str, instead: str, remark: str) -> str:
    """A key with its value; as a remark with an example when there is none."""
    setting = f"{key} = {value}" if value else f"# {key} = {instead}"
    return f"{setting:<48}  # {remark}\n"


def _top(wishes: Wishes) -> str:
    return (
        "# Posthouse, an SMTP relay. docs/configuration.md explains every key.\n"
        "# `posthouse check` proves that no stranger can relay; `posthouse reload` puts a change in force.\n\n"
        + _line("hostname", wishes.hostname and _quoted(wishes.hostname), '"mx.example.org"', "default: the machine's")
        + _line("data_dir", wishes.data_dir and _quoted(wishes.data_dir), '"/var/lib/posthouse"', "the queue is here")
        + _line(
            "postmaster",
            wishes.postmaster and _quoted(wishes.postmaster),
            '"you@example.org"',
            "gets mail for postmaster and the usage report",
        )
    )


def _listeners(wishes: Wishes) -> str:
    parts = [f'[[listener]]\naddress = {_quoted(address)}\nrole = "relay"\n' for address in wishes.listen]
    parts.append(
        "# For users who log in (accounts: `posthouse user add NAME`):\n"
        "# [[listener]]\n"
        '# address = "0.0.0.0:465"\n'
        '# role = "submission"\n'
        '# tls = { certificate = "cert.pem", key = "key.pem", implicit = true }\n'
    )
    return "\n".join(parts)


def _relay(wishes: Wishes) -> str:
    lines = [
        "[relay]\n",
        "# Who may relay to anywhere without a login. Everyone else may send to the domains below only.\n",
        f"trusted_networks = {_array(wishes.trusted_networks)}\n",
    ]
    if wishes.gateways_as_strangers:
        lines.append(f"gateways_as_strangers = {_array(wishes.gateways_as_strangers)}\n")
    if wishes.gateways_trusted:
        lines.append(f"gateways_trusted = {_array(wishes.gateways_trusted)}\n")
    local, relay = wishes.local_domains, wishes.relay_domains
    lines.append(_line("local_domains", _array(local) if local else "", '["example.org"]', "final destination here"))
    lines.append(
        _line("relay_domains", _array(relay) if relay else "", '["dept.example.org"]', "relayed there for anyone")
    )
    return "".join(lines)


_ALIASES = """\
[aliases]
# postmaster = ["you@example.org"]
"""


def _routes(wishes: Wishes) -> list[str]:
    parts = []
    if wishes.local_domains:
        parts.append(_route("Final delivery.", wishes.local_domains, wishes.deliver_to))
    if wishes.relay_domains:
        parts.append(_route("The servers behind this one.", wishes.relay_domains, wishes.relay_to or "mx:"))
    if wishes.smart_host:
        smart_host = wishes.smart_host if "://" in wishes.smart_host else f"smtp://{wishes.smart_host}"
        route = _route("All else goes to a smart host.", ("*",), smart_host)
        if wishes.smart_host_user:
            user, file = _quoted(wishes.smart_host_user), _quoted(wishes.password_file)
            route += f"login = {{ user = {user}, password_file = {file} }}\n"
        parts.append(route)
    else:
        parts.append(
            "# All else goes to the MX hosts of its own domain. For a smart host instead:\n"
            "# [[route]]\n"
            '# domain = "*"\n'
            '# to = ["smtp://smart.example.net:587"]\n'
            '# login = { user = "me", password_file = "smart-host.password" }\n'
        )
    return parts


def _route(remark: str, domains: tuple[str, ...], to: str) -> str:
    domain = _quoted(domains[0]) if len(domains) == 1 else _array(domains)
    return f"# {remark}\n[[route]]\ndomain = {domain}\nto = [{_quoted(to)}]\n"
