"""A disk that others fill: 452 in sessions that go on, no loss, mail again as soon as there is room; long before, 452 at MAIL."""

import os

import pytest

from fault_disk import can_mount
from fault_full import fill_often
from peer_programs import require_kernel

CYCLES = int(os.environ.get("POSTHOUSE_FULL_DISKS", "5"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["octets", "inodes", "guard"])
def test_full_disk_refuses_mail_loses_none_and_passes(kind: str) -> None:
    require_kernel("mounting a small filesystem to fill it", can_mount())
    done = fill_often(CYCLES, kind)
    print(done)
    assert done.deaths == 0
    assert done.times_refused == done.times_resumed == CYCLES
    assert not done.findings.problems, done.findings.problems
    if kind == "guard":
        assert done.late_refusals == 0, "refused after DATA although the size was declared at MAIL"


def test_control_full_disk_is_noticed_when_the_250_is_early() -> None:
    require_kernel("mounting a small filesystem to fill it", can_mount())
    done = fill_often(CYCLES, "octets", sabotage="early-250")
    print(done)
    assert done.findings.lost, f"the programme measures nothing: {done.findings}"
