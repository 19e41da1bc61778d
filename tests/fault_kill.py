"""Kills a working relay, again and again."""

import time
from collections.abc import Callable

from fault_oracle import Findings
from fault_run import Run, run


def kill_often(
    times: int, sabotage: str = "", seed: int = 0, progress: Callable[[int], None] = lambda _: None
) -> tuple[Findings, list[float]]:
    """So many SIGKILLs at random moments under load; then the verdict, and how long each start took (seconds)."""
    with run(sabotage=sabotage, seed=seed) as going:
        for number in range(times):
            _kill_soon(going, going.victims.start())
            progress(number + 1)
        findings = going.judge_after_sabotage() if sabotage else going.drain()
        return findings, going.victims.starts


def _kill_soon(going: Run, pid: int) -> None:
    time.sleep(going.random.choice((0.0, 0.02, 0.1, 0.3)) + going.random.uniform(0, 0.1))
    going.ledger.fault()
    going.victims.kill(pid)
    going.fault_is_over()
