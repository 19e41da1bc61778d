"""Is there room? The last reading of the filesystem's free space, looked at without I/O."""

import os
from pathlib import Path

import msgspec


class SpaceLimits(msgspec.Struct, frozen=True):
    """What must stay free: octets and inodes."""

    free_bytes: int = 1_000_000_000
    free_inodes: int = 1000


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
