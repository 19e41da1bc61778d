"""The wall clock jumps under a working relay: no burst of expiry, nothing that waits for years, no delay of other mail.

Ten jumps by default; 20 by `tests/faults/long.py --clock-jumps`.
"""

import pytest

from fault_clock import JUMPS, jump_often

pytestmark = pytest.mark.slow


def test_mail_neither_expires_nor_waits_when_the_clock_jumps() -> None:
    found = jump_often()
    print(found)
    assert found.jumps == len(JUMPS)
    assert found.findings.returned == 0, "mail expired by a clock that was set"
    assert found.late == []
    assert not found.findings.problems, found.findings.problems


def test_control_a_queue_that_goes_by_the_wall_clock_is_noticed() -> None:
    found = jump_often(JUMPS[2:6], sabotage="naive-clock")
    print(found)
    assert found.late, f"the programme measures nothing: {found}"
