"""What was being tried when a worker died: by this the message is found that kills whoever touches it.

A worker that ended in good order leaves word of it. Where that word is missing, the next one notes each message that it
takes from the queue before it is touched, synced, and again when it has its outcomes; mail that has just come in is never noted. A worker
that finds itself started after such a death knows what was under way then: each of those is a suspect, with the
number of its deaths, until an attempt at it ends. Who has more than `MOST_DEATHS` is to be set aside.

    begin -> noted -> ended                                    nothing to see
    begin -> noted -> the worker dies -> suspect, one death    tried again, alone (relay.trial)
    ... three deaths -> condemned -> set aside                 tried again only when the operator releases it: once

So in normal life nothing is written between start and stop, and a message needs one death more than are counted: the first, before
which nobody noted anything. What dies with the machine is blamed on nobody. The journal is a short file of lines, appended to; a torn
last line is none.
"""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from posthouse.observe import log
from posthouse.spool.api import SpoolBroken, SpoolError
from posthouse.spool.schema import spool_error
from posthouse.spool.shard import sync_directory

NAME = "under-way"

MOST_DEATHS = 2
"""Noted deaths that a message may have been under way at."""

BLAME_MS = 10_000
"""What had been under way for so long when the last one was begun is not to blame: whoever kills does so at once."""

CAREFUL_SECONDS = 3600.0
"""After a death, how long everything taken from the queue is noted; suspects are for as long as they are."""

_COMPACT_AT = 4_000_000

Key = tuple[int, int]
"""A message, and the first of the recipients that are tried together."""


class UnderWay:
    """The journal of one shard, from a worker's start to its end. Belongs to who holds the shard's lock."""

    def __init__(self, directory: Path, on_broken: Callable[[SpoolError], None] = lambda _: None) -> None:
        """Reads what the last worker left behind, and begins anew. SpoolBroken; a full disk is no reason not to start."""
        self._directory = directory
        self._path = directory / NAME
        self._on_broken = on_broken
        self._begun: dict[Key, int] = {}
        self._deaths: dict[Key, int] = {}
        self._aside: set[Key] = set()
        self._fd = -1
        self._written = 0
        self._is_told = False
        has_died = self._read()
        self._careful_until = time.monotonic() + CAREFUL_SECONDS if has_died else 0.0
        self._rewrite()

    # What it knows

    @property
    def is_needed(self) -> bool:
        """The last worker died, or there are suspects: what is taken from the queue must go by this journal."""
        return bool(self._deaths) or self._careful_until > 0

    def is_suspect(self, key: Key) -> bool:
        """A worker has died of it, perhaps."""
        return key in self._deaths

    def condemned(self) -> list[tuple[Key, int]]:
        """Who is to be set aside now, with how many deaths."""
        return [
            (key, deaths) for key, deaths in self._deaths.items() if deaths > MOST_DEATHS and key not in self._aside
        ]

    # What it is told

    def begins(self, key: Key) -> None:
        """From now on an attempt is under way; on disk when this returns, if it need be."""
        if key in self._begun or not (key in self._deaths or time.monotonic() < self._careful_until):
            return
        self._begun[key] = _now_ms()
        self._append(f"+ {key[0]} {key[1]} {self._begun[key]}\n", is_synced=True)

    def ended(self, key: Key) -> None:
        """It lived: whoever was suspected is no more."""
        if self._begun.pop(key, None) is None:
            return
        self._deaths.pop(key, None)
        self._aside.discard(key)
        self._append(
            f"- {key[0]} {key[1]}\n"
        )  # the death of a process does not undo it, and that of a machine blames nobody

    def set_aside(self, key: Key) -> None:
        """It is held. Once more is enough from now on."""
        self._aside.add(key)
        self._append(f"aside {key[0]} {key[1]} {self._deaths.get(key, 0)}\n", is_synced=True)

    def forget(self, key: Key) -> None:
        """It has left the queue."""
        self._deaths.pop(key, None)
        self._aside.discard(key)
        self._append(f"- {key[0]} {key[1]}\n")

    def close(self) -> None:
        """The worker ends in good order."""
        self._append("end\n")
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # The file

    def _read(self) -> bool:
        """Takes stock; True when the last worker died."""
        try:
            text = self._path.read_text("ascii", "replace")
        except FileNotFoundError:
            return False
        except OSError as error:
            raise spool_error(error, f"reading {self._path}") from error
        lines = text.split("\n")[:-1]
        for line in lines:
            with contextlib.suppress(ValueError):
                self._take(line.split(" "))
        if not lines or lines[-1] == "end" or lines[0] != f"life {_boot()}":
            self._begun.clear()
            return False
        latest = max(self._begun.values(), default=0)
        for key, at in self._begun.items():
            if at >= latest - BLAME_MS:
                self._deaths[key] = self._deaths.get(key, 0) + 1
                self._aside.discard(key)
        self._begun.clear()
        return True

    def _take(self, words: list[str]) -> None:
        match words:
            case ["+", queue_id, index, at]:
                self._begun[int(queue_id), int(index)] = int(at)
            case ["-", queue_id, index]:
                key = (int(queue_id), int(index))
                self._begun.pop(key, None)
                self._deaths.pop(key, None)
                self._aside.discard(key)
            case ["suspect" | "aside" as word, queue_id, index, deaths]:
                key = (int(queue_id), int(index))
                self._deaths[key] = int(deaths)
                if word == "aside":
                    self._aside.add(key)

    def _rewrite(self) -> None:
        """The journal anew, with what is still of interest."""
        lines = [f"life {_boot()}\n"]
        for key, deaths in self._deaths.items():
            word = "aside" if key in self._aside else "suspect"
            lines.append(f"{word} {key[0]} {key[1]} {deaths}\n")
        lines += [f"+ {key[0]} {key[1]} {at}\n" for key, at in self._begun.items()]
        new = self._directory / f"{NAME}.new"
        octets = "".join(lines).encode()
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                _write(fd, octets)
                _sync(fd)
                new.rename(self._path)
                _sync_name(self._directory)
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            self._failed(error, "writing")
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._written = len(octets)

    def _append(self, line: str, *, is_synced: bool = False) -> None:
        if self._fd < 0:
            return
        try:
            self._written += _write(self._fd, line.encode())
            if is_synced:
                _sync(self._fd)
        except OSError as error:
            self._failed(error, "writing")
            return
        if self._written > _COMPACT_AT:
            self._rewrite()

    def _failed(self, error: OSError, doing: str) -> None:
        fault = spool_error(error, f"{doing} {self._path}", is_sync=isinstance(error, _SyncError))
        if isinstance(fault, SpoolBroken):
            self._on_broken(fault)
            raise fault from error
        if not self._is_told:
            self._is_told = True
            log.warning("not-noted", words=f"what kills a worker would not be found out: {fault}")


class _SyncError(OSError):
    """A sync failed: nobody knows what is on disk."""


def _write(fd: int, octets: bytes) -> int:
    written = 0
    while written < len(octets):
        written += os.write(fd, octets[written:])
    return written


def _sync(fd: int) -> None:
    try:
        os.fdatasync(fd)
    except OSError as error:
        raise _SyncError(*error.args) from error


def _sync_name(directory: Path) -> None:
    try:
        sync_directory(directory)
    except OSError as error:
        raise _SyncError(*error.args) from error


def _boot() -> str:
    """Which of the machine's lives this is."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return "unknown"


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
