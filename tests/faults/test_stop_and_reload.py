"""SIGTERM and SIGHUP under load: in good order, nothing lost, nothing twice, well within 30 seconds."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from fault_load import Load, sending
from fault_oracle import Ledger, judge
from fault_run import LOCAL, mailbox_arrivals, settings_for
from fault_sink import sink
from fault_stop import stop_often
from posthouse_server import configured

STOPS = int(os.environ.get("POSTHOUSE_STOPS", "25"))

pytestmark = pytest.mark.slow


def test_a_worker_told_to_stop_loses_nothing_and_delivers_nothing_twice() -> None:
    found = stop_often(STOPS)
    print(found)
    assert found.statuses == {0}
    assert found.slowest < 30
    assert not found.findings.problems, found.findings.problems


def test_control_an_abrupt_stop_is_noticed() -> None:
    found = stop_often(10, sabotage="abrupt-stop")
    print(found)
    assert found.findings.problems, f"the programme measures nothing: {found}"


def test_the_whole_server_reloads_and_stops_under_load(tmp_path: Path) -> None:
    box = tmp_path / "box"
    ledger = Ledger()
    with sink(tmp_path) as taking, configured(settings_for(box, taking.url), workers=2) as server:
        load = Load(ledger, server.port, random.randrange(1, 1 << 30))
        with sending(load):
            for _ in range(max(2, STOPS // 10)):
                with server.serving() as process:
                    for _ in range(3):
                        time.sleep(random.uniform(0.05, 0.3))
                        process.send_signal(signal.SIGHUP)
                    time.sleep(random.uniform(0.1, 0.4))
                    began = time.monotonic()
                    process.send_signal(signal.SIGTERM)
                    assert process.wait(35) == 0
                    assert time.monotonic() - began < 30
        with server.serving():
            end = time.monotonic() + 60
            while (findings := judge(ledger, taking.arrivals() + mailbox_arrivals(box, LOCAL))).lost:
                assert time.monotonic() < end, findings.problems
                time.sleep(0.2)
        assert "reload-refused" not in server.output()
    print(findings)
    assert findings.acknowledged > STOPS
    assert not findings.problems, findings.problems
