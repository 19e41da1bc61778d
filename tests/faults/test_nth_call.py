"""SIGKILL at every n-th write, sync, rename, unlink and open of a life in which everything happens once, by strace.

All n for most calls, every third for the hundred writes to the database; all by `tests/faults/long.py --every-call`.
"""

import pytest

from fault_nth import CALLS, die_at_each
from fault_syscalls import require_strace

pytestmark = pytest.mark.slow

_MANY = ("pwrite64",)


@pytest.mark.parametrize("calls", [[c for c in CALLS if c not in _MANY], _MANY], ids=["syncs-and-names", "writes"])
def test_death_at_any_call_loses_nothing(calls: list[str]) -> None:
    require_strace()
    died = die_at_each(calls, stride=3 if calls == _MANY else 1)
    print(died.deaths, died.findings)
    assert sum(died.deaths.values()) >= 20
    assert not died.findings.problems, died.findings.problems


@pytest.mark.parametrize("sabotage", ["early-250", "early-record"])
def test_control_death_at_a_call_is_noticed_when_the_order_is_wrong(sabotage: str) -> None:
    require_strace()
    died = die_at_each(["fdatasync", "write"], stride=3, sabotage=sabotage)
    print(died.deaths, died.findings)
    assert died.findings.lost, f"the programme measures nothing: {died.findings}"
