"""Every state in which a crash could leave the queue's disk, by the strictest reading: the queue opens, and keeps its promise.

50 points of some 480 by default, in each all states; all by `tests/faults/long.py --states`. See `fault_model`.
"""

import os
from pathlib import Path

import pytest

from fault_model import without_syncs
from fault_states import check_states, record, tally
from fault_syscalls import require_strace

POINTS = int(os.environ.get("POSTHOUSE_CRASH_POINTS", "50"))

pytestmark = pytest.mark.slow


def test_no_crash_state_loses_or_harms_what_was_acknowledged(tmp_path: Path) -> None:
    require_strace()
    ops, root = record(tmp_path)
    checked = check_states(ops, root, POINTS, seed=int.from_bytes(os.urandom(4)))
    print(tally(ops), checked)
    assert checked.distinct > 20 * min(POINTS, 50)
    assert not checked.problems, checked.problems[:10]


@pytest.mark.parametrize("what", ["all", "directories"])
def test_control_missing_syncs_are_noticed(tmp_path: Path, what: str) -> None:
    require_strace()
    ops, root = record(tmp_path)
    checked = check_states(without_syncs(ops, directories=what == "directories"), root, 8, seed=1)
    assert any("lost" in problem for problem in checked.problems), "the programme measures nothing"
