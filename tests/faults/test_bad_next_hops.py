"""Next hops that refuse, reset, hang, drip or lie at every stage: nothing is lost, and no other destination waits for them."""

import pytest

from fault_bad_hops import ALL, UNFELT_MS, suffer_bad_hops

pytestmark = pytest.mark.slow


def test_next_hops_that_misbehave_at_every_stage_lose_nothing_and_delay_nobody() -> None:
    found = suffer_bad_hops()
    print(found)
    assert found.hops == len(ALL) == 66
    assert not found.findings.problems, found.findings.problems
    assert found.stuck == 0
    assert found.troubled_ms < max(2 * found.quiet_ms, UNFELT_MS)


def test_control_one_connection_for_all_is_noticed() -> None:
    found = suffer_bad_hops([("greeting", "hang"), ("end", "hang"), ("mail", "drip")], seconds=1.0, sabotage="one-lane")
    print(found)
    assert found.stuck or found.findings.queued or found.findings.lost, f"the programme measures nothing: {found}"


def test_control_outcomes_noted_too_early_are_noticed() -> None:
    found = suffer_bad_hops([("end", "close"), ("data", "reset")], seconds=1.0, sabotage="early-record")
    print(found)
    assert found.findings.lost, f"the programme measures nothing: {found}"
