"""Is there room? The last reading of the filesystem's free space, looked at without I/O; and a reserve for when there is none."""

import contextlib
import os
from pathlib import Path

import msgspec


class SpaceLimits(msgspec.Struct, frozen=True):
    """What must stay free: octets and inodes; and how many octets are set aside for outcomes."""

    free_bytes: int = 1_000_000_000
    free_inodes: int = 1000
    reserve_bytes: int = 32_000_000


class Space:
    """Free space as last read, minus what was promised since.

    `read` runs on the commit thread about once a second; `take` and `has_room` run in the loop and cost an addition.
    """

    def __init__(self, directory: Path, limits: SpaceLimits) -> None:
        self._directory = directory
        self.limits = limits
        self.free_bytes = 0
        self.free_inodes = 0
        self.reusable_bytes = 0
        """Octets inside the database that its next rows will take."""
        self.taken = 0
        """Octets promised since the last reading."""

    def read(self, reusable_bytes: int) -> None:
        """A new reading."""
        found = os.statvfs(self._directory)
        self.free_bytes = found.f_bavail * found.f_frsize
        # A filesystem without a table of inodes (btrfs) says 0 of 0.
        self.free_inodes = found.f_favail if found.f_files else 1 << 62
        self.reusable_bytes = reusable_bytes
        self.taken = 0

    def take(self, octets: int) -> None:
        """So much will be written before the next reading."""
        self.taken += octets

    def has_room(self, octets: int, in_flight: int) -> bool:
        """A message of that size leaves enough free, with `in_flight` octets still on their way to the disk.

        Twice what is in flight stays free besides: it is written once as content and may be once more in the log.
        """
        floor = max(self.limits.free_bytes, 2 * in_flight)
        free = self.free_bytes + self.reusable_bytes - self.taken - octets
        return free >= floor and self.free_inodes >= self.limits.free_inodes


class Reserve:
    """Octets kept from everybody in a file, so that outcomes can be recorded on a disk that others have filled.

    Without it a full disk could deliver and never note so, and would deliver again after each restart. It is spent by
    removing the file when a batch finds the disk full; until it can be had back no mail is taken.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self._path = directory / "reserve"
        self._size = size_bytes
        self.is_spent = False
        self._fill()

    def spend(self) -> None:
        """The disk is full: outcomes first."""
        self.is_spent = True
        self._path.unlink(missing_ok=True)

    def restore(self, free_bytes: int) -> None:
        """Takes it back once there is twice as much free."""
        if self.is_spent and free_bytes >= 2 * self._size:
            self._fill()
            self.is_spent = False

    def _fill(self) -> None:
        """Best effort: a disk too full for it at the start is the guard's business."""
        if self._size == 0 or (self._path.exists() and self._path.stat().st_size == self._size):
            return
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size)
            except OSError:
                self._path.unlink()
            finally:
                os.close(fd)
