"""Power cuts on a real ext4: what was acknowledged is there when the power is back, and without syncs it would not be.

The filesystem is shut down by ioctl while the relay works on it: all that was not synced is gone, the journal is not written.
60 cuts by default; more by `python tests/faults/long.py --power-cuts 10000`.
"""

import os

import pytest

from fault_disk import power_disk, require_power_cuts
from fault_power import cut_often
from fault_sabotage import can_filter
from peer_programs import require_kernel

CUTS = int(os.environ.get("POSTHOUSE_POWER_CUTS", "60"))

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mailbox_apart", [False, True], ids=["one-disk", "mailbox-apart"])
def test_every_acknowledged_message_survives_power_cuts(mailbox_apart: bool) -> None:
    require_power_cuts()
    findings = cut_often(CUTS // 2, mailbox_apart=mailbox_apart)
    print(findings)
    assert findings.acknowledged > CUTS
    assert not findings.problems, findings.problems


@pytest.mark.parametrize("sabotage", ["no-sync", "no-directory-sync", "early-250"])
def test_control_power_cuts_are_noticed_when_syncs_are_missing(sabotage: str) -> None:
    require_power_cuts()
    require_kernel("a filter of system calls on this processor", can_filter())
    findings = cut_often(20, sabotage, mailbox_apart=sabotage == "no-directory-sync")
    print(findings)
    assert findings.lost, f"the programme measures nothing: {findings}"


def test_unsynced_files_vanish_and_synced_ones_stay() -> None:
    """The fault itself: what the ioctl does is what a power cut does."""
    require_power_cuts()
    with power_disk(16) as disk:
        kept, lost = disk.place / "kept", disk.place / "lost"
        for path, is_synced in ((kept, True), (lost, False)):
            with path.open("wb") as file:
                file.write(b"x" * 5000)
                file.flush()
                if is_synced:
                    os.fsync(file.fileno())
        disk.cut_power()
        disk.recover()
        assert kept.read_bytes() == b"x" * 5000
        assert not lost.exists() or lost.stat().st_size == 0
        disk.check()
