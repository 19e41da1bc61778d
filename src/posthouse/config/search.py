"""Where the configuration is, and where the data are when it does not say."""

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import NamedTuple

from posthouse.config.error import ConfigError

HERE = Path("posthouse.toml")
SYSTEM = Path("/etc/posthouse/posthouse.toml")
SYSTEM_DATA_DIR = Path("/var/lib/posthouse")
_host_name = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*").fullmatch
LARGEST_FILE = 1_000_000
"""Octets. A configuration is a page or two; more is a mistake (a log, a mailbox), and is not read into memory."""


def find_config(explicit: Path | None) -> Path | None:
    """The file to read: `explicit`, ./posthouse.toml, /etc/posthouse/posthouse.toml; None for the embedded default.

    ConfigError when a file in the current directory belongs to a stranger: cron and other programs call us in
    directories such as /tmp, and who plants a file there must not choose our settings.
    """
    if explicit is not None:
        return explicit
    try:
        found = HERE.stat()
    except OSError:
        return SYSTEM if SYSTEM.exists() else None
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & stat.S_IWOTH:
        raise ConfigError(
            f"{HERE.absolute()} belongs to another user or may be written by anyone, so it is not trusted; "
            f"name it with --config if you mean it, or change to another directory"
        )
    return HERE


def read_bounded(path: Path) -> bytes:
    """The octets of a configuration file. ConfigError when it can't be read or is far too large."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path} is not a file; name a TOML file")
            octets = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; `posthouse init` writes one") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its path and permissions") from error
    if len(octets) > LARGEST_FILE:
        raise ConfigError(f"{path} is larger than {LARGEST_FILE} octets; is it really a configuration file?")
    return octets


def read_text(path: Path) -> str:
    """The text of a configuration file, as every editor writes it. ConfigError."""
    try:
        text = read_bounded(path).decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (octet {error.start})") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def default_data_dir(source: Path | None) -> Path:
    """`data_dir` when the configuration does not say: the user's state directory; /var/lib/posthouse for a file in /etc."""
    if source is not None and source.absolute().is_relative_to("/etc"):
        return SYSTEM_DATA_DIR
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if state.startswith("/") else Path.home() / ".local" / "state") / "posthouse"


class LocalServer(NamedTuple):
    """What a program on this machine must know to hand mail to the server."""

    data_dir: Path
    hostname: str


def find_local(explicit: Path | None) -> LocalServer:
    """The data directory and host name alone, cheaply: for `sendmail`, which must not stumble over the rest. ConfigError."""
    path = find_config(explicit)
    if path is None:
        return LocalServer(default_data_dir(None), machine_name())
    text = read_text(path)
    try:
        top = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        from posthouse.config.load import toml_fault  # noqa: PLC0415 - heavy, for the one who needs the words

        raise toml_fault(path, text, error) from None
    data_dir, hostname = top.get("data_dir"), top.get("hostname")
    return LocalServer(
        path.absolute().parent / Path(data_dir).expanduser() if isinstance(data_dir, str) else default_data_dir(path),
        _a_labels(hostname) if isinstance(hostname, str) else machine_name(),
    )


def _a_labels(hostname: str) -> str:
    if hostname.isascii():
        return hostname.rstrip(".").lower()
    from posthouse.config.values import host_name  # noqa: PLC0415 - the few who need it can wait for it

    try:
        return host_name(hostname)
    except ValueError as error:
        raise ConfigError(f"hostname {error}") from error


def find_data_dir(explicit: Path | None) -> Path:
    """The data directory alone: for commands that ask the running server. ConfigError."""
    return find_local(explicit).data_dir


def machine_name() -> str:
    """The machine's name, with its domain when /etc/hosts knows it. DNS is not asked: a start must not wait for it."""
    name = os.uname().nodename.lower()
    if "." not in name:
        try:
            lines = Path("/etc/hosts").read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            names = line.partition("#")[0].lower().split()[1:]
            if name in names:
                name = next((full for full in names if full.startswith(f"{name}.")), name)
                break
    return name if _host_name(name) else "localhost"
