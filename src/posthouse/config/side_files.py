"""The files that a configuration names: valid recipients, passwords, certificates. Read when the server is put together."""

import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from posthouse.config import values
from posthouse.config.error import ConfigError
from posthouse.config.places import KeyPath, find_places
from posthouse.config.search import read_text
from posthouse.config.settings import Config, TlsSettings
from posthouse.config.table import Document

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
    """Reads each file that the configuration names. ConfigError, with the place and the key, for the first that can't be used."""
    for path, key, read in _named(config):
        try:
            read()
        except ConfigError as error:
            raise _fault(config, path, f"{key}: {error}") from error


def find_exposed(config: Config) -> list[str]:
    """Secrets that every user of this machine can read, one sentence each. Files that can't be looked at are passed over."""
    secrets = [route.login.password_file for route in config.routes if route.login]
    secrets += [listener.tls.key for listener in config.listeners if listener.tls]
    secrets += [config.tester.key_file] if config.tester.key_file else []
    return [
        f"{path} can be read by every user of this machine: chmod o-rwx {path}"
        for path in dict.fromkeys(secrets)
        if _is_exposed(path)
    ]


def _is_exposed(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _named(config: Config) -> Iterator[tuple[KeyPath, str, Callable[[], object]]]:
    """The place of each key that names files, the key as the file has it, and how they are read."""
    for index, listener in enumerate(config.listeners):
        if listener.tls:
            yield ("listener", index, "tls"), "[[listener]] tls", partial(_check_tls, listener.tls)
    for index, route in enumerate(config.routes):
        if route.login:
            place = ("route", index, "login", "password_file")
            yield place, "[[route]] login password_file", partial(read_password, route.login.password_file)
    if config.relay.recipients:
        yield (
            ("relay", "recipients"),
            "[relay] recipients",
            partial(_open, config.relay.recipients),
        )  # rules_of reads it


def _check_tls(tls: TlsSettings) -> None:
    from posthouse.net.tls import TlsError, server_context  # noqa: PLC0415 - most configurations have no certificate

    for path in (tls.certificate, tls.key):
        _open(path)
    try:
        server_context(tls.certificate, tls.key)
    except TlsError as error:
        raise ConfigError(error.words) from error


def _fault(config: Config, path: KeyPath, words: str) -> ConfigError:
    """With the line, as long as the file can still be read."""
    if config.source is None:
        return ConfigError(words)
    try:
        places = find_places(read_text(config.source))
    except (ConfigError, ValueError, LookupError):  # it has changed meanwhile
        places = {}
    return Document(str(config.source), config.source.parent, places).fault(path, words)


def _open(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its path and permissions") from error


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
