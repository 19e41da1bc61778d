"""Kinds of values: each takes what TOML gave and answers the checked value, or raises ValueError with the remedy."""

import datetime
import enum
import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from posthouse.policy.domains import normalise_pattern
from posthouse.smtp.address import AddressError, parse_domain, parse_mailbox

T = TypeVar("T")
E = TypeVar("E", bound=enum.StrEnum)
Kind = Callable[[object], T]
"""A reader of one kind of value."""

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_TIME_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AMOUNT = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]*)")


def type_name(value: object) -> str:
    """The TOML name of a value's type, for people."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "a table",
    }
    return names.get(type(value), "a date or time")


def text(value: object) -> str:
    """Any string that is not empty and has no control characters."""
    if not isinstance(value, str):
        raise ValueError(f"must be a string, not {type_name(value)}")  # noqa: TRY004 - one error for all that is wrong
    if not value:
        raise ValueError("is empty; give a value or leave the key out")
    if not value.isprintable():
        raise ValueError("has control characters in it")
    return value


def boolean(value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {type_name(value)}")  # noqa: TRY004
    return value


def whole(least: int, most: int = 10**12) -> Kind[int]:
    """A whole number between two bounds, both included."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"must be a whole number, not {type_name(value)}")  # noqa: TRY004
        if not least <= value <= most:
            raise ValueError(f"is {value}; it must be between {least} and {most}")
        return value

    return read


def number(least: float, most: float) -> Kind[float]:
    """A number between two bounds, both included."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"must be a number, not {type_name(value)}")  # noqa: TRY004
        if not least <= value <= most:
            raise ValueError(f"is {value}; it must be between {least:g} and {most:g}")
        return float(value)

    return read


def _amount(value: object, units: dict[str, int], fold: Callable[[str], str], unit: str, wanted: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        found: float = value
    else:
        match = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None or fold(match[2]) not in units:
            raise ValueError(f"must be {wanted}, not {value!r}")
        found = float(match[1]) * units[fold(match[2])]
    if not 0 < found < 10**15:
        raise ValueError(f"is {value!r}; it must be more than zero {unit} and within reason")
    return found


def size(value: object) -> int:
    """Octets: a whole number, or "50MB" (10^6), "50MiB" (2^20)."""
    found = _amount(value, _SIZE_UNITS, str.upper, "octets", 'a size such as "50MB", "64MiB" or a number of octets')
    if found != int(found):
        raise ValueError(f"is {value!r}, which is not a whole number of octets")
    return int(found)


def duration(value: object) -> float:
    """Seconds: a number, or "30s", "5m", "4h", "5d", "2w"."""
    return _amount(
        value, _TIME_UNITS, str.lower, "seconds", 'a time such as "30s", "5m", "4h", "5d" or a number of seconds'
    )


def one_of(choices: type[E]) -> Kind[E]:
    """One of an enum's values."""

    def read(value: object) -> E:
        try:
            return choices(text(value))
        except ValueError:
            listed = ", ".join(f'"{choice}"' for choice in choices)
            raise ValueError(f"is {value!r}; it must be one of {listed}") from None

    return read


def word_of(*choices: str) -> Kind[str]:
    """One of several words."""

    def read(value: object) -> str:
        if value not in choices:
            raise ValueError(f"is {value!r}; it must be one of {', '.join(repr(choice) for choice in choices)}")
        return str(value)

    return read


def path_in(directory: Path) -> Kind[Path]:
    """A file's path; a relative one is taken from `directory`, `~` is the home directory."""

    def read(value: object) -> Path:
        return directory / Path(text(value)).expanduser()

    return read


def moment(value: object) -> float:
    """A point in time in seconds since 1970: a TOML date (its first moment) or date and time, UTC where no offset is given."""
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.replace(tzinfo=datetime.UTC)).timestamp()
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC).timestamp()
    raise ValueError("must be a date or a date and time without quotes, such as 2026-08-01 or 2026-08-01T18:00:00Z")


def host_name(value: object) -> str:
    """A host or domain name as A-labels in lower case, without a trailing dot (RFC 5890)."""
    written = text(value)
    try:
        name = parse_domain(written.rstrip(".").encode())
    except AddressError as error:
        raise ValueError(f"{written!r} is not a domain name: {error}") from None
    if name.startswith("["):
        raise ValueError(f"{written!r} is an address literal; a name is wanted")
    return name


def domain_pattern(value: object) -> str:
    """A domain as lists and routes have it: "example.org", ".example.org" for its subdomains, "*" for all."""
    written = text(value)
    if written.startswith("*."):
        raise ValueError(f'{written!r}: subdomains are written ".{written[2:]}"')
    if "@" in written:
        raise ValueError(f"{written!r} is an address; a domain is wanted")
    if written == "*" or written.startswith("["):
        return normalise_pattern(written)
    return "." + host_name(written[1:]) if written.startswith(".") else host_name(written)


def ip_address(value: object) -> str:
    """An IPv4 or IPv6 address in its usual form."""
    written = text(value)
    try:
        return str(ipaddress.ip_address(written.removeprefix("[").removesuffix("]")))
    except ValueError:
        raise ValueError(f"{written!r} is not an IP address") from None


def network(value: object) -> str:
    """An IP address or a network, "192.0.2.0/24"; a single address keeps its short form."""
    written = text(value)
    try:
        found = ipaddress.ip_network(written)
    except ValueError:
        raise ValueError(_network_remedy(written)) from None
    return str(found.network_address) if found.prefixlen == found.max_prefixlen else str(found)


def _network_remedy(written: str) -> str:
    try:
        meant = ipaddress.ip_network(written, strict=False)
    except ValueError:
        return f'{written!r} is not an IP address or network such as "192.0.2.0/24" (names are not looked up)'
    return f'{written!r} has host bits set; write "{meant}" for the network, or the address alone for one host'


def endpoint(default_port: int | None = None, least_port: int = 1) -> Kind[tuple[str, int]]:
    """An IP address and a port: "192.0.2.1:25", "[2001:db8::1]:25"; "*:25" is not one, for it hides IPv4 or IPv6."""

    def read(value: object) -> tuple[str, int]:
        written = text(value)
        if default_port is not None and written.count(":") > 1 and not written.startswith("["):
            return ip_address(written), default_port
        host, port = split_port(written, default_port, least_port)
        if host == "localhost":
            host = "127.0.0.1"
        try:
            return str(ipaddress.ip_address(host)), port
        except ValueError:
            raise ValueError(
                f'{written!r} is not an IP address and port such as "127.0.0.1:25" or "[::1]:25"; '
                f'for all interfaces write "0.0.0.0:25" and "[::]:25"'
            ) from None

    return read


def split_port(written: str, default_port: int | None, least_port: int = 1) -> tuple[str, int]:
    """Host (brackets taken off) and port of "host:port". ValueError when there is no port and no default, or none that can be."""
    if written.startswith("["):
        host, closing, rest = written[1:].partition("]")
        if not closing or (rest and not rest.startswith(":")):
            raise ValueError(f'{written!r} is not "[address]:port"')
        port = rest[1:] if rest else ""
    elif written.count(":") > 1:
        raise ValueError(f'{written!r}: an IPv6 address is written in brackets, "[2001:db8::1]:25"')
    else:
        host, _, port = written.partition(":")
    if not port and default_port is not None and not written.endswith(":"):
        return host, default_port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and least_port <= int(port) <= 65535):
        raise ValueError(f"{written!r} needs a port between {least_port} and 65535 after the last colon")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """The text is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def mail_address(value: object) -> str:
    """local-part@domain, the domain as A-labels (RFC 5321 4.1.2)."""
    written = text(value)
    try:
        return str(parse_mailbox(written.encode()))
    except AddressError as error:
        raise ValueError(f"{written!r} is not a mail address such as postmaster@example.org: {error}") from None


def list_of(kind: Kind[T]) -> Kind[tuple[T, ...]]:
    """An array whose items are all of one kind; an error carries the item's number."""

    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError(f"must be an array ([...]), not {type_name(value)}")  # noqa: TRY004
        items = []
        for index, item in enumerate(value):
            try:
                items.append(kind(item))
            except ValueError as error:
                raise ItemError(index, str(error)) from None
        return tuple(items)

    return read


def one_or_many(kind: Kind[T]) -> Kind[tuple[T, ...]]:
    """One value, or an array of at least one."""
    many = list_of(kind)

    def read(value: object) -> tuple[T, ...]:
        found = many(value if isinstance(value, list) else [value])
        if not found:
            raise ValueError("is empty; name at least one")
        return found

    return read


class ItemError(ValueError):
    """What is wrong with one item of an array (its number from 0) or of a table of names (its name)."""

    def __init__(self, index: int | str, words: str) -> None:
        super().__init__(words)
        self.index = index
