"""SIGKILL at random moments under load: what was acknowledged arrives, whatever is killed and when.

12 kills of the whole server and 96 of a worker by default; more by `POSTHOUSE_KILLS=200 ./run-tests tests/faults/test_kill.py -s`,
and 10,000 by `tests/faults/long.py --kills 10000`.
"""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from fault_kill import kill_often
from fault_load import Load, sending
from fault_oracle import Ledger, judge
from fault_run import LOCAL, mailbox_arrivals, release_held, settings_for
from fault_sink import Sink, sink
from fault_syscalls import is_alive
from peer_programs import wait_until
from posthouse_server import Posthouse, configured, fork_server_of, workers_of

KILLS = int(os.environ.get("POSTHOUSE_KILLS", "12"))
LONGEST_UPTIME = 0.8  # seconds between ready and the kill

pytestmark = pytest.mark.slow


def kill(what: str, supervisor: int) -> None:
    """Kills one worker, the supervisor, all of them at once, or what they are forked from."""
    workers = workers_of(supervisor)
    if what == "worker":
        one = random.choice(workers)
        os.kill(one, signal.SIGKILL)
        wait_until(lambda: not is_alive(one), "the worker to end")
        return
    if what == "fork server":
        os.kill(fork_server_of(supervisor), signal.SIGKILL)
        return
    if what == "supervisor":
        os.kill(supervisor, signal.SIGKILL)
    else:
        for pid in (supervisor, *workers):
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, workers)), "the workers to end", 35)


def run_and_kill(server: Posthouse, ledger: Ledger, taking: Sink) -> None:
    """Starts the server, lets it work for a moment, and kills some part of it."""
    what = random.choice(("all", "all", "supervisor", "worker", "fork server"))
    with server.serving() as process:
        time.sleep(random.uniform(0, LONGEST_UPTIME))
        ledger.fault()
        kill(what, process.pid)
        is_still_there = what in {"worker", "fork server"}
        if is_still_there:
            time.sleep(0.3)  # the other one goes on
        else:
            taking.wait_until_all_is_read()
        ledger.fault_is_over()
        if is_still_there:
            time.sleep(random.uniform(0, LONGEST_UPTIME))
            ledger.fault()
            kill("all", process.pid)
            taking.wait_until_all_is_read()
            ledger.fault_is_over()


def test_every_acknowledged_message_arrives_however_often_the_server_is_killed(tmp_path: Path) -> None:
    box = tmp_path / "box"
    ledger = Ledger()
    with sink(tmp_path) as taking, configured(settings_for(box, taking.url), workers=2) as server:
        load = Load(ledger, server.port, random.randrange(1, 1 << 30))
        with sending(load):
            for _ in range(KILLS):
                run_and_kill(server, ledger, taking)
        set_aside = release_held(server.data_dir)
        with server.serving():
            end = time.monotonic() + 60
            while (findings := judge(ledger, taking.arrivals() + mailbox_arrivals(box, LOCAL))).lost:
                assert time.monotonic() < end, findings.problems
                time.sleep(0.2)
    findings.set_aside = len(set_aside)
    print(findings)
    assert findings.acknowledged > KILLS
    assert not findings.problems, findings.problems


def test_every_acknowledged_message_arrives_however_often_a_worker_is_killed() -> None:
    findings, starts = kill_often(8 * KILLS)
    print(findings)
    assert findings.acknowledged > KILLS
    assert not findings.problems, findings.problems
    assert sorted(starts)[len(starts) // 2] < 5.0  # ready again


@pytest.mark.parametrize("sabotage", ["early-250", "early-record"])
def test_control_kills_are_noticed_when_the_order_of_things_is_wrong(sabotage: str) -> None:
    findings, _ = kill_often(20, sabotage)
    print(findings)
    assert findings.lost, f"the programme measures nothing: {findings}"
