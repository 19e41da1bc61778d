"""A sync or a write that fails: no 250 after a failed sync, exit 74, nothing acknowledged lost even when the power goes too."""

import pytest

from fault_disk import require_power_cuts
from fault_sync_error import SYNCS, fail_each
from fault_syscalls import require_strace
from posthouse.serve.start import EXIT_SYNC_FAILED

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("then", ["", "+"], ids=["one-fails", "all-fail-from-there"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_no_mail_is_taken_after_a_failed_sync(error: str, then: str) -> None:
    require_strace()
    require_power_cuts()
    errors = fail_each(SYNCS, error, then)
    print(errors.struck, errors.statuses, errors.findings)
    assert errors.struck["fdatasync"] >= 5
    assert errors.acknowledged_after == 0
    assert set(errors.statuses) == {EXIT_SYNC_FAILED}
    assert not errors.findings.problems, errors.findings.problems


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_no_mail_is_lost_by_writes_that_fail(error: str) -> None:
    require_strace()
    require_power_cuts()
    errors = fail_each(("pwritev2", "writev", "pwrite64", "ftruncate"), error, stride=4)
    print(errors.struck, errors.statuses, errors.findings)
    assert errors.struck["pwrite64"] >= 10
    assert set(errors.statuses) <= {EXIT_SYNC_FAILED}
    assert not errors.findings.problems, errors.findings.problems


def test_control_a_forgiven_sync_error_is_noticed() -> None:
    require_strace()
    require_power_cuts()
    errors = fail_each(SYNCS, "EIO", "+", sabotage="forgive-errors", most=4)
    print(errors.struck, errors.statuses, errors.findings)
    assert errors.acknowledged_after, f"the programme measures nothing: {errors.findings}"
