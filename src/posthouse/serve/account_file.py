"""The file of logins: one `name:argon2id-hash` a line, ours alone (0600), replaced whole and never changed in place.

`posthouse user` writes it while a server reads it; a reader sees the file before or after a change, never half of one.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

import argon2

from posthouse.config import Config
from posthouse.spool.shard import sync_directory

HASHER = argon2.PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
"""Argon2id with 19 MiB and two passes: about 18 ms a password, and memory that many logins at once can't exhaust."""

SHORTEST_PASSWORD = 8
LONGEST_PASSWORD = 1024
"""Octets; what is longer is no password but load."""

_is_name = re.compile(r"[a-z0-9_](?:[a-z0-9._+@-]{0,126}[a-z0-9])?").fullmatch
_HEADER = "# The accounts of this Posthouse, kept by `posthouse user`: name:argon2id hash, one a line.\n"


class AccountError(Exception):
    """The accounts can't be read or changed as asked; the text is one sentence with the remedy."""


class AccountMissing(AccountError):
    """There is no such account."""


class AccountExists(AccountError):
    """There is such an account already."""


def accounts_path(config: Config) -> Path:
    """The file of a configuration's accounts."""
    return config.accounts or config.data_dir / "accounts"


def account_name(text: str) -> str:
    """A login as it is kept and compared: in lower case. AccountError when it can't be one."""
    name = text.strip().lower()
    if not _is_name(name):
        raise AccountError(
            f"{text!r} can't be a login: letters, digits and . _ + - @ between them, 128 characters at most"
        )
    return name


def check_password(password: str) -> None:
    """AccountError when a new password is too short, too long, or can't be typed into a mail program."""
    if len(password) < SHORTEST_PASSWORD:
        raise AccountError(f"the password is shorter than {SHORTEST_PASSWORD} characters; choose a longer one")
    if not password.isprintable() or len(password.encode()) > LONGEST_PASSWORD:
        raise AccountError(
            f"the password has control characters or more than {LONGEST_PASSWORD} octets; choose another"
        )


class AccountFile:
    """The accounts in a file. A missing file holds none; the first account makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, str]:
        """Every login with its hash. AccountError when the file can't be read or is not one of accounts."""
        try:
            text = self.path.read_text("utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            words = getattr(error, "strerror", None) or "it is not text"
            raise AccountError(f"the accounts in {self.path} can't be read: {words}") from error
        found: dict[str, str] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line or line.startswith("#"):
                continue
            name, colon, password_hash = line.partition(":")
            if not colon or not password_hash.startswith("$argon2"):
                raise AccountError(f"{self.path}:{number} is not name:hash; only `posthouse user` should write here")
            found[name] = password_hash
        return found

    def require(self, name: str) -> None:
        """AccountMissing when there is no such account."""
        _require(self.read(), account_name(name))

    def require_free(self, name: str) -> None:
        """AccountExists when there is such an account."""
        _require_free(self.read(), account_name(name))

    def add(self, name: str, password: str) -> None:
        """A new account. AccountExists, AccountError."""
        name = account_name(name)
        check_password(password)
        with self._changing() as accounts:
            _require_free(accounts, name)
            accounts[name] = HASHER.hash(password)

    def set_password(self, name: str, password: str) -> None:
        """A new password for an account. AccountMissing, AccountError."""
        name = account_name(name)
        check_password(password)
        with self._changing() as accounts:
            _require(accounts, name)
            accounts[name] = HASHER.hash(password)

    def remove(self, name: str) -> None:
        """Takes an account away: its next login fails. AccountMissing, AccountError."""
        name = account_name(name)
        with self._changing() as accounts:
            _require(accounts, name)
            del accounts[name]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, str]]:
        """The accounts, to be changed: one writer at a time, on disk when the block ends well."""
        try:
            self.path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
            with _locked(self.path.with_name(f"{self.path.name}.lock")):
                accounts = self.read()
                yield accounts
                self._replace(accounts)
        except OSError as error:
            raise AccountError(f"the accounts in {self.path} can't be changed: {error.strerror}") from error

    def _replace(self, accounts: dict[str, str]) -> None:
        lines = [f"{name}:{accounts[name]}\n" for name in sorted(accounts)]
        new = self.path.with_name(f"{self.path.name}.new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as out:
            os.fchmod(fd, 0o600)
            _give_to_owner_of(self.path.parent, fd)
            out.write(_HEADER + "".join(lines))
            out.flush()
            os.fsync(fd)
        new.rename(self.path)
        sync_directory(self.path.parent)


def _require(accounts: dict[str, str], name: str) -> None:
    if name not in accounts:
        raise AccountMissing(f"there is no account {name}; `posthouse user list` shows those there are")


def _require_free(accounts: dict[str, str], name: str) -> None:
    if name in accounts:
        raise AccountExists(f"there is an account {name} already; `posthouse user passwd` changes its password")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _give_to_owner_of(path.parent, fd)
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _give_to_owner_of(directory: Path, fd: int) -> None:
    """What root writes must be readable by the user the server becomes: the data directory's owner."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(fd, owner.st_uid, owner.st_gid)
