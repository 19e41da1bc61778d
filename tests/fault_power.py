"""Cuts the power under a working relay, again and again."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence

from fault_disk import PowerDisk, power_disk
from fault_oracle import Findings
from fault_run import Run, run
from fault_victim import Ended

_SIZES = (300,) * 12 + (4_000,) * 8 + (30_000,) * 4 + (120_000,) * 2 + (600_000,)


def cut_often(
    times: int,
    sabotage: str = "",
    seed: int = 0,
    *,
    mailbox_apart: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> Findings:
    """So many power cuts at random moments, each under load, with a recovery after each; then the verdict.

    `mailbox_apart`: the Maildir is on a filesystem of its own, so that no sync of the queue's makes its names durable by chance.
    """
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(power_disk()) for _ in range(1 + mailbox_apart)]
        box = disks[-1].place / "box"
        going = stack.enter_context(run(disks[0].place / "data", box, sabotage, seed, sizes=_SIZES))
        for number in range(times):
            try:
                pid = going.victims.start()
            except Ended:
                if sabotage:
                    break  # its queue is past opening
                raise
            time.sleep(going.random.choice((0.0, 0.03, 0.1, 0.25)) + going.random.uniform(0, 0.08))
            _cut(going, disks, pid)
            progress(number + 1)
        if sabotage:
            return going.judge_after_sabotage()
        findings = going.drain()
        for disk in disks:
            disk.check()
        return findings


def _cut(going: Run, disks: Sequence[PowerDisk], pid: int) -> None:
    """A machine without power does nothing more, so the worker is stopped first, in the middle of whatever it does.

    Running on, it would be lied to: ext4's shutdown sets a flag, sleeps for 20 ms and only then ends the journal, and a sync
    that was under way when the flag was set may return 0 in that time although its data is never found again.
    """
    os.kill(pid, signal.SIGSTOP)
    going.ledger.fault()
    for disk in reversed(disks):
        disk.cut_power()
    going.victims.kill(pid)
    going.fault_is_over()
    for disk in disks:
        disk.recover()
