"""A shard's directory: whose it is, and the lock that keeps it to one process."""

import contextlib
import fcntl
import os
from pathlib import Path

from posthouse.spool.api import SpoolForeign, SpoolLocked

LOCK_NAME = "lock"


class ShardLock:
    """Holds a shard for this process until `release`; the kernel lets go by itself when the process dies.

    The lock is a file that says who holds it. SpoolLocked names the other's pid; SpoolForeign says whose the directory is.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        _make_private(directory)
        self._fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise SpoolLocked(
                f"the queue in {directory} is in use by process {pid}; stop that server first, or give this one another data_dir"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Gives the shard up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def shard_directories(data_dir: Path) -> list[tuple[int, Path]]:
    """(shard, directory) of every shard under a data directory, in order; empty when there is no queue yet."""
    try:
        found = [(int(entry.name), entry) for entry in (data_dir / "spool").iterdir() if entry.name.isdecimal()]
    except FileNotFoundError:
        return []
    return sorted(found)


def sync_directory(directory: Path) -> None:
    """Makes new names in a directory survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_directories(directory: Path) -> None:
    """Makes a directory and what is missing above it, ours alone, each name synced: mail in it is no safer than its path.

    The two names above it are synced even if they were there: who made them may have died before it came to that.
    """
    missing: list[Path] = []
    place = directory
    while not place.is_dir() and place != place.parent:
        missing.append(place)
        place = place.parent
    for new in reversed(missing):
        new.mkdir(mode=0o700, exist_ok=True)
    for made in {*missing, directory, directory.parent}:
        with contextlib.suppress(PermissionError):  # above the data directory all is its owner's business
            sync_directory(made.parent)


def _make_private(directory: Path) -> None:
    make_directories(directory)
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        raise SpoolForeign(
            f"{directory} belongs to uid {owner} and this process runs as uid {os.geteuid()}; "
            "run as that user, or set data_dir to a directory of your own"
        )
