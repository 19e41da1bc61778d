"""Disks that others fill while the relay works: no octets, no inodes, or just less than it wants to keep free."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from fault_disk import small_disk
from fault_load import LATER, MIXED, Client
from fault_oracle import Findings
from fault_run import Run, run
from fault_syscalls import is_alive

DISK_MEGABYTES = 200.0
"""Of which the relay reserves 32 for outcomes, and may use 64 each for its log and for a content file that is not sealed yet."""

SIZES = (300,) * 6 + (30_000,) * 3 + (120_000,)


class Fulls(msgspec.Struct):
    """What was done and found. `times_refused` and `times_resumed` count cycles in which mail was refused, then taken again."""

    findings: Findings
    cycles: int = 0
    times_refused: int = 0
    times_resumed: int = 0
    late_refusals: int = 0
    deaths: int = 0
    slowest_refusal: float = 0.0
    """Seconds until mail was refused."""


@contextlib.contextmanager
def filled(disk: Path, leave: int = 0) -> Iterator[None]:
    """No octet is free but `leave`."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    try:
        with filler.open("wb") as file:
            octets = max(0, free.f_bavail * free.f_frsize - leave)
            while octets > 0:
                try:
                    os.posix_fallocate(file.fileno(), 0, octets)
                    break
                except OSError:
                    octets -= 65536
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def without_inodes(disk: Path) -> Iterator[None]:
    """No further file can be made."""
    directory = disk / "inodes"
    directory.mkdir()
    made: list[Path] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                path = directory / str(len(made))
                path.touch()
                made.append(path)
        yield
    finally:
        for path in made:
            path.unlink()
        directory.rmdir()


def fill_often(
    cycles: int, kind: str = "octets", sabotage: str = "", progress: Callable[[int], None] = lambda _: None
) -> Fulls:
    """The disk is full for a while, and is not, so many times, under load. `kind`: "octets", "inodes" or "guard"."""
    guard = 20_000_000 if kind == "guard" else 1
    with (
        small_disk(DISK_MEGABYTES, inodes=1500) as disk,
        run(
            disk / "data",
            sabotage=sabotage,
            mix=((LATER,),) if sabotage else MIXED,  # so that memory alone cannot save what was not stored
            sizes=SIZES,
            retry="0.3s",
            free_space=guard,
            pause=0.02 if kind == "guard" else 0.002,  # so that no second of load fills what is left of it
        ) as going,
    ):
        pid = going.victims.start()
        done = Fulls(going.judge_now(), cycles)
        for number in range(cycles):
            _wait_until_taken(going)
            with without_inodes(disk) if kind == "inodes" else filled(disk, leave=guard * 3 // 4):
                began = time.monotonic()
                done.times_refused += _wait_until(lambda: _is_refused(going), 4)
                done.slowest_refusal = max(done.slowest_refusal, time.monotonic() - began)
                time.sleep(0.3)
                if not is_alive(pid):
                    done.deaths += 1
                    going.victims.wait(pid)
            if not is_alive(pid):
                pid = going.victims.start()
            done.times_resumed += _wait_until_taken(going)
            progress(number + 1)
        done.late_refusals = going.load.late_refusals
        going.victims.stop(pid)
        done.findings = going.judge_after_sabotage() if sabotage else going.drain()
        return done


def _is_refused(going: Run) -> bool:
    """A message of a megabyte gets 452 at MAIL, in a session that goes on."""
    try:
        with contextlib.closing(Client(going.load.port, timeout=5)) as client:
            client.say("EHLO client.test")
            reply = client.say("MAIL FROM:<a@src.test> SIZE=1000000")
            return reply.startswith("452") and client.say("NOOP").startswith("250")
    except OSError:
        return False


def _wait_until_taken(going: Run) -> bool:
    since = time.monotonic()
    return _wait_until(lambda: len(going.ledger.acknowledged_since(since)) > 5, 8)


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
