"""Stops and reloads under load: in good order, so that nothing is lost and nothing comes twice."""

import time
from collections.abc import Callable

import msgspec

from fault_oracle import Findings
from fault_run import run


class Stops(msgspec.Struct):
    """What was done and found; times in seconds."""

    findings: Findings
    stops: int
    statuses: set[int]
    slowest: float = 0.0


def stop_often(
    times: int, sabotage: str = "", seed: int = 0, progress: Callable[[int], None] = lambda _: None
) -> Stops:
    """So many SIGTERMs at random moments under load, a start after each; then the verdict. No fault explains a duplicate here."""
    with run(sabotage=sabotage, seed=seed) as going:
        found = Stops(Findings(), times, set())
        for number in range(times):
            pid = going.victims.start()
            time.sleep(going.random.choice((0.02, 0.1, 0.3)) + going.random.uniform(0, 0.1))
            began = time.monotonic()
            found.statuses.add(going.victims.stop(pid))
            found.slowest = max(found.slowest, time.monotonic() - began)
            progress(number + 1)
        found.findings = going.judge_after_sabotage() if sabotage else going.drain()
        return found
