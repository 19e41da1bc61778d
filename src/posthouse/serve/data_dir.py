"""The data directory: ours alone, and one server's at a time.

    lock          held while a server runs; names its pid
    relay-state   "off" after `posthouse relay off`
    echoes.json   what outside tests have shown: whose networks are suspended (serve.masking)
    echo.key      by which this server knows the nonces it has given to testers
    usage-sent    when the last weekly usage report went out, in seconds since 1970
    control.sock  commands to the running server, for its user
    submit.sock   mail from local users (posthouse sendmail), for everybody
    accounts      logins and password hashes, unless the configuration puts them elsewhere
    postmaster/   a Maildir for mail to `<postmaster>` that nobody is named to get
    tester/       the relay test's: the key that signs tokens, receipts of the collector, proofs of control
    spool/N/      the queue's shard N

It may be entered by everybody (0711), so that local users reach submit.sock; what is in it is ours (0600, 0700).
"""

import contextlib
import enum
import fcntl
import os
import stat
import time
from pathlib import Path

import msgspec

from posthouse.serve.privileges import Identity
from posthouse.spool.shard import sync_directory

ORPHANS_SECONDS = 10.0
"""The workers of a supervisor that was killed hold the lock until they have ended, which takes them half as long."""

ECHO_KEY = "echo.key"
"""The file of the secret behind the nonces for outside tests."""


class DataDirError(Exception):
    """The directory can't be used; the text is one sentence with the place and the remedy."""


class RelayOption(enum.StrEnum):
    """What `posthouse relay` has left behind."""

    ON = "on"
    OFF = "off"
    UNKNOWN = "unknown"
    """It can't be read: by this user, or at all."""


class DataDir(msgspec.Struct, frozen=True):
    """The directory, locked for this process as long as `lock_fd` is open."""

    path: Path
    lock_fd: int

    @property
    def control_socket(self) -> Path:
        """Where commands reach the server."""
        return self.path / "control.sock"

    @property
    def submit_socket(self) -> Path:
        """Where local users hand in mail."""
        return self.path / "submit.sock"

    @property
    def relay_option(self) -> RelayOption:
        """Off after `posthouse relay off`, over restarts, until `on`."""
        try:
            return RelayOption.OFF if (self.path / "relay-state").read_text() == "off\n" else RelayOption.ON
        except FileNotFoundError:
            return RelayOption.ON
        except (OSError, UnicodeDecodeError):
            return RelayOption.UNKNOWN

    @property
    def is_relay_enabled(self) -> bool:
        """For the server, which is closed when in doubt: False too when the state can't be read."""
        return self.relay_option is RelayOption.ON

    def set_relay_enabled(self, enabled: bool) -> None:
        """Durable when it returns. OSError."""
        self._write("relay-state", "on\n" if enabled else "off\n")

    def set_findings(self, document: str) -> None:
        """What echoes have shown (serve.masking). Durable when it returns. OSError."""
        self._write("echoes.json", document)

    @property
    def usage_sent_at(self) -> float:
        """When the last usage report was sent, in seconds since 1970; 0.0: never."""
        try:
            return float((self.path / "usage-sent").read_text())
        except (OSError, ValueError):
            return 0.0

    def set_usage_sent_at(self, seconds: float) -> None:
        """Notes the moment. OSError."""
        self._write("usage-sent", f"{seconds:.0f}\n")

    def shards(self) -> list[int]:
        """The spool shards that exist; none when the directory can't be read, which the workers then say."""
        try:
            return sorted(
                int(one.name) for one in (self.path / "spool").iterdir() if one.name.isdecimal() and one.is_dir()
            )
        except OSError:
            return []

    def release(self) -> None:
        """Gives the directory up and takes our sockets away."""
        for name in (self.control_socket, self.submit_socket):
            with contextlib.suppress(OSError):
                name.unlink(missing_ok=True)
        os.close(self.lock_fd)

    def _write(self, name: str, text: str) -> None:
        new = self.path / f"{name}.new"
        with new.open("w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        new.rename(self.path / name)
        sync_directory(self.path)


def open_data_dir(path: Path, identity: Identity) -> DataDir:
    """Makes the directory for the user we shall be, where it is missing, and locks it. DataDirError."""
    try:
        _make(path, identity)
        lock_fd = _lock(path, identity)
        _make(path / "spool", identity, mode=0o700)
    except OSError as error:
        raise DataDirError(
            f"can't use the data directory {path}: {error.strerror} ({error.filename or path})"
        ) from error
    return DataDir(path, lock_fd)


def _make(path: Path, identity: Identity, mode: int = 0o711) -> None:
    missing: list[Path] = []
    place = path
    while not place.exists():
        missing.append(place)
        place = place.parent
    for place in reversed(missing):
        place.mkdir(mode=0o755 if place != path else mode)
        place.chmod(0o755 if place != path else mode)  # mkdir's mode is cut by the umask
        if place == path:
            identity.give(place)
        sync_directory(place.parent)  # mail in it is no safer than its path
    found = path.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise DataDirError(f"{path} is not a directory: remove it, or set another data_dir")
    if found.st_uid != identity.uid:
        raise DataDirError(
            f"the data directory {path} belongs to uid {found.st_uid}, we run as uid {identity.uid}: "
            f"chown it, run as its owner, or set another data_dir"
        )
    if found.st_mode & 0o066:
        path.chmod(stat.S_IMODE(found.st_mode) & ~0o066)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_gone(holder: str) -> bool:
    """The process that took the lock is no more: what holds it are its workers, on their way out."""
    if not holder.isdecimal():
        return False
    try:
        state = Path(f"/proc/{holder}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in {"Z", "X"}  # killed, and nobody has asked for its status yet


def _lock(path: Path, identity: Identity) -> int:
    fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + ORPHANS_SECONDS
    while not _try_lock(fd):
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        if not _is_gone(holder) or time.monotonic() >= deadline:
            os.close(fd)
            raise DataDirError(
                f"the data directory {path} is in use by another posthouse, pid {holder}: "
                f"stop that one, or set another data_dir"
            )
        time.sleep(0.05)
    identity.give(path / "lock")
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)
    return fd
