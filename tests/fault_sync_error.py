"""Syncs and writes that fail: the n-th, or the n-th and all after it, wherever the relay makes them; then the power goes too."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from fault_disk import PowerDisk, power_disk
from fault_load import LOCAL, Client, content
from fault_nth import play, settle
from fault_oracle import Findings
from fault_run import Run, run
from fault_syscalls import injected, is_alive, wait_or_dead
from fault_victim import Ended

SYNCS = ("fdatasync", "fsync")


class Errors(msgspec.Struct):
    """What was done, and the verdict. `acknowledged_after` counts mail taken after a failed sync of the queue: must be 0."""

    findings: Findings
    struck: dict[str, int]
    statuses: list[int]
    acknowledged_after: int


def fail_each(
    calls: Sequence[str] = SYNCS,
    error: str = "EIO",
    then: str = "",
    sabotage: str = "",
    most: int = 100,
    stride: int = 1,
    progress: Callable[[str], None] = lambda _: None,
) -> Errors:
    """A life for each n-th call, which fails (and with `then` "+" all later ones); after each the power is cut."""
    struck: dict[str, int] = {}
    statuses: list[int] = []
    late = 0
    with _on_power_disk(sabotage) as (going, disk):
        for call in calls:
            for n in range(1, most, stride):
                try:
                    pid = going.victims.start()
                except Ended:
                    break
                settle(going)
                with injected(pid, call, f"error={error}:when={n}{then}", going.directory / "trace") as faults:
                    play(going, f"{call}-{n}", lambda p=pid: not is_alive(p))  # type: ignore[misc]
                    count = len(faults.struck)
                    # A mailbox's own disk is no reason to stop.
                    if call in SYNCS and any("/spool/" in line for line in faults.struck):
                        late += _go_on(going, pid, f"{call}-{n}-late")
                going.ledger.fault()
                disk.cut_power()
                if is_alive(pid):
                    going.victims.kill(pid)
                else:
                    statuses.append(going.victims.wait(pid))
                disk.recover()
                going.fault_is_over()
                if not count:
                    break
                struck[call] = struck.get(call, 0) + 1
                progress(f"{call} {n}")
        findings = going.judge_after_sabotage() if sabotage else going.drain()
    return Errors(findings, struck, statuses, late)


@contextlib.contextmanager
def _on_power_disk(sabotage: str) -> Iterator[tuple[Run, PowerDisk]]:
    with (
        power_disk() as disk,
        run(disk.place / "data", sabotage=f"thread-sync+{sabotage}", clients=0, retry="0.1s") as going,
    ):
        yield going, disk


def _go_on(going: Run, pid: int, name: str) -> int:
    """Mail handed in after the error: how many of two were acknowledged by a worker that should have ended."""
    if wait_or_dead(pid, 1.0):
        return 0
    taken = 0
    for number in range(2):
        octets = content(f"{name}-{number}", 300, number)
        going.ledger.sends(f"{name}-{number}", octets, [LOCAL])
        reply = ""
        with contextlib.suppress(OSError), contextlib.closing(Client(going.load.port, timeout=5)) as client:
            client.say("EHLO client.test")
            reply = client.hand_in(octets, [LOCAL])
        going.ledger.answered(f"{name}-{number}", reply)
        taken += reply.startswith("250")
    time.sleep(0.1)
    return taken
