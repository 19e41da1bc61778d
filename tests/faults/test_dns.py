"""A name server that fails in nineteen ways under load: no mail lost, none bounced for a fault that passes, none led inside."""

import pytest

from fault_bad_hops import UNFELT_MS
from fault_dns import suffer_dns
from fault_name_server import FAULTS

pytestmark = pytest.mark.slow


def test_faults_of_the_dns_lose_nothing_bounce_nothing_too_early_and_lead_nobody_inside() -> None:
    found = suffer_dns()
    print(found)
    assert found.faults == len(FAULTS) == 19
    assert found.wrong == []
    assert not found.findings.problems, found.findings.problems
    assert found.stuck == 0
    assert found.troubled_ms < max(2 * found.quiet_ms, UNFELT_MS)


def test_control_a_relay_that_takes_silence_for_no_and_any_address_is_noticed() -> None:
    found = suffer_dns(1.0, sabotage="naive-dns")
    print(found)
    assert any("servfail: returned" in one for one in found.wrong), f"the programme measures nothing: {found}"
    assert any("inside:" in one and "loopback" in one for one in found.wrong), (
        f"the programme measures nothing: {found}"
    )
