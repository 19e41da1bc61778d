"""Dies at every n-th system call of a short life in which everything happens once: accept, delivery, retry, notice."""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec

from fault_load import LATER, LOCAL, REFUSED, RELAYED, Client, content
from fault_oracle import Findings
from fault_run import Run, run
from fault_syscalls import injected, is_alive

CALLS = ("fdatasync", "fsync", "rename", "unlink", "pwritev2", "writev", "openat", "pwrite64", "write", "ftruncate")
"""All by which the relay changes its disk, and `write` and `writev`, by which it also speaks to clients and next hops."""

SCENE: tuple[tuple[int, Sequence[str]], ...] = (
    (300, (RELAYED,)),
    (30_000, (RELAYED,)),
    (400_000, (RELAYED, LOCAL)),
    (300, (REFUSED,)),
    (300, (LATER,)),
)


class Deaths(msgspec.Struct):
    """What was done: at which calls the worker died, and the verdict on all of it."""

    findings: Findings
    deaths: dict[str, int]


def play(going: Run, name: str, is_over: Callable[[], bool] = lambda: False) -> None:
    """The scene, as far as the server lives to see it; returns when all that it was promised is settled."""
    ledger = going.ledger
    began = time.monotonic()
    with contextlib.suppress(OSError), contextlib.closing(Client(going.load.port, timeout=5)) as client:
        client.say("EHLO client.test")
        for number, (size, recipients) in enumerate(SCENE):
            octets = content(f"{name}-{number}", size, number)
            ledger.sends(f"{name}-{number}", octets, recipients)
            reply = ""
            try:
                reply = client.hand_in(octets, recipients)
            finally:
                ledger.answered(f"{name}-{number}", reply)
    while not is_over() and time.monotonic() < began + going.patience and going.judge_now().lost:
        time.sleep(0.02)
    end = time.monotonic() + 0.2  # until it is on record
    while not is_over() and time.monotonic() < end:
        time.sleep(0.02)


def die_at_each(
    calls: Iterable[str] = CALLS,
    stride: int = 1,
    most: int = 1000,
    sabotage: str = "",
    progress: Callable[[str], None] = lambda _: None,
) -> Deaths:
    """A life for each call and each n, as long as n is reached at all; with `stride` every so many-th n only."""
    deaths: dict[str, int] = {}
    with run(sabotage=f"thread-sync+{sabotage}", clients=0, retry="0.1s") as going:
        for call in calls:
            for n in range(1, most, stride):
                if not _die_at(going, call, n):
                    break
                deaths[call] = deaths.get(call, 0) + 1
                progress(f"{call} {n}")
        findings = going.judge_after_sabotage() if sabotage else going.drain()
        return Deaths(findings, deaths)


def _die_at(going: Run, call: str, n: int) -> bool:
    """One life; False when it ended without coming to that call."""
    pid = going.victims.start()
    settle(going)
    trace = going.directory / "trace"
    with injected(pid, call, f"signal=KILL:when={n}", trace):
        play(going, f"{call}-{n}", lambda: not is_alive(pid))
        has_died = not is_alive(pid)
        if has_died:
            going.ledger.fault()
    going.victims.kill(pid)
    if has_died:
        going.fault_is_over()
    return has_died


def settle(going: Run) -> None:
    """What an earlier life has left is delivered first, so that the next one's calls are its own."""
    end = time.monotonic() + going.patience
    while going.judge_now().lost and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.1)
