"""Disks of the fault programme: an ext4 on a loop device whose power can be cut, and small ones that fill up."""

import contextlib
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from peer_programs import require_kernel

_SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN: _IOR('X', 125, __u32). From here on the filesystem takes nothing more."""

_NO_LOG_FLUSH = 2
"""Not even the journal is written: all that was not synced is gone, as when the power fails."""


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


class PowerDisk:
    """A filesystem on a loop device at `place`."""

    def __init__(self, image: Path, place: Path) -> None:
        self._image = image
        self.place = place
        self.cuts = 0

    def mount(self) -> None:
        """Recovers from the journal, if need be."""
        _run("mount", "-o", "loop", str(self._image), str(self.place))

    def cut_power(self) -> None:
        """At this instant. Whoever still uses the filesystem gets errors; see `recover`."""
        descriptor = os.open(self.place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(descriptor)
        self.cuts += 1

    def recover(self) -> None:
        """Power is back; nobody may have a file open there any more.

        A mount namespace that another process has made meanwhile (`ip netns exec` makes one) may hold the filesystem as it was when
        the power failed: it is waited for, or what is mounted next would be that same dead one.
        """
        end = time.monotonic() + 60
        while True:
            self.unmount()
            self.mount()
            try:
                (self.place / ".alive").touch()
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)
            else:
                return

    def unmount(self) -> None:
        """Waits a little for processes that were just killed to let go."""
        end = time.monotonic() + 10
        while True:
            try:
                _run("umount", str(self.place))
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
            else:
                return

    def check(self) -> None:
        """AssertionError when the filesystem itself is damaged (it must not be: that would be no fault of ours)."""
        self.unmount()
        done = subprocess.run(["fsck.ext4", "-fn", str(self._image)], capture_output=True, text=True, check=False)
        self.mount()
        assert done.returncode == 0, done.stdout


@contextlib.contextmanager
def power_disk(megabytes: int = 192) -> Iterator[PowerDisk]:
    """A fresh ext4, unmounted and gone at the end. OSError where the kernel refuses."""
    directory = Path(tempfile.mkdtemp(prefix="posthouse-power-"))
    directory.chmod(0o755)
    image, place = directory / "image", directory / "disk"
    place.mkdir()
    try:
        with image.open("wb") as file:
            file.truncate(megabytes * 1_000_000)
        _run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
        # A mount of its own, and shared: what is unmounted below it is unmounted in other namespaces too, if they listen.
        _run("mount", "--bind", str(directory), str(directory))
        _run("mount", "--make-shared", str(directory))
        disk = PowerDisk(image, place)
        try:
            disk.mount()
            yield disk
        finally:
            for mounted in (place, directory):
                subprocess.run(["umount", "-l", str(mounted)], capture_output=True, check=False)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@functools.cache
def _can_cut_power() -> bool:
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        return False
    try:
        with power_disk(16) as disk:
            (disk.place / "unsynced").write_bytes(b"x")
            disk.cut_power()
            disk.recover()
            return not (disk.place / "unsynced").exists()
    except OSError:
        return False


def require_power_cuts() -> None:
    """Skips, in words, where loop mounts or the shutdown ioctl are refused."""
    require_kernel("a loop-mounted ext4 and its shutdown ioctl (power cuts)", _can_cut_power())


@contextlib.contextmanager
def small_disk(megabytes: float, inodes: int = 1000) -> Iterator[Path]:
    """A tmpfs of that size. OSError where the kernel refuses."""
    place = Path(tempfile.mkdtemp(prefix="posthouse-small-"))
    try:
        _run(
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={int(megabytes * 1024)}k,nr_inodes={inodes},mode=755",
            "none",
            str(place),
        )
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
    finally:
        place.rmdir()


def can_mount() -> bool:
    """Whether a small filesystem may be mounted here."""
    if os.geteuid() != 0:
        return False
    try:
        with small_disk(1):
            return True
    except OSError:
        return False
