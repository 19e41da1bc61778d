"""The files that a configuration names: valid recipients, passwords, certificates. Read when the server is put together."""

from pathlib import Path

from posthouse.config import values
from posthouse.config.error import ConfigError
from posthouse.config.settings import Config

_LARGEST_LIST = 256 * 1024 * 1024


def read_recipients(path: Path) -> frozenset[str]:
    """The valid recipients, in lower case; "@example.org" is a whole domain, "name" that name in each local domain.

    One a line; empty lines and what follows a `#` after white space or at the start do not count. ConfigError names the line.
    """
    found = set()
    for number, line in enumerate(_text(path, _LARGEST_LIST).splitlines(), 1):
        written = line.split(" #", 1)[0].split("\t#", 1)[0].strip()
        if not written or written.startswith("#"):
            continue
        try:
            found.add(_recipient(written))
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: {error}; write one address a line") from None
    return frozenset(found)


def _recipient(written: str) -> str:
    if written.startswith("@"):
        return f"@{values.host_name(written[1:])}"
    if "@" in written:
        return values.mail_address(written).lower()
    return values.mail_address(f"{written}@localhost").removesuffix("@localhost").lower()


def read_password(path: Path) -> str:
    """The first line of a password file. ConfigError when it can't be read or is empty."""
    password = _text(path, 4096).partition("\n")[0].rstrip("\r")
    if not password:
        raise ConfigError(f"{path}: the first line is empty; it must hold the password")
    return password


def check_files(config: Config) -> None:
    """Opens each file that the configuration names. ConfigError, with its key, for the first that can't be read."""
    named = [(f"[[listener]] tls {key}", path) for key, path in _tls_files(config)]
    named += [("[[route]] login password_file", route.login.password_file) for route in config.routes if route.login]
    if config.relay.recipients:
        named.append(("[relay] recipients", config.relay.recipients))
    for key, path in named:
        try:
            path.open("rb").close()
        except OSError as error:
            raise ConfigError(
                f"{key}: {path} cannot be read ({error.strerror}); check its path and permissions"
            ) from error


def _tls_files(config: Config) -> list[tuple[str, Path]]:
    found = [listener.tls for listener in config.listeners if listener.tls]
    return [("certificate", tls.certificate) for tls in found] + [("key", tls.key) for tls in found]


def _text(path: Path, largest: int) -> str:
    try:
        with path.open("rb") as file:
            octets = file.read(largest + 1)
        if len(octets) > largest:
            raise ConfigError(f"{path} is larger than {largest} octets")
        return octets.decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its path and permissions") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (octet {error.start})") from None
