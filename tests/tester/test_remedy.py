"""The first thing to do about a host that is open."""

from posthouse.tester.remedy import find_remedy
from posthouse.tester.report import CaseResult, Report
from posthouse.tester.verdict import CaseVerdict, HostVerdict


def reported(*results: CaseResult) -> Report:
    return Report("mx.test", "127.0.0.1", 25, HostVerdict.OPEN, "open", results, 0.0, 1.0, software="posthouse")


RELAYED = CaseResult(101, "plain third party", CaseVerdict.RELAYED, reply="250 2.0.0 Queued")


def sentence(report: Report, *, is_from_itself: bool = False) -> str:
    remedy = find_remedy(report, is_from_itself=is_from_itself)
    assert remedy is not None
    return remedy.sentence


def test_posthouse_that_relays_for_strangers_is_to_be_checked() -> None:
    assert "trusted_networks" in sentence(reported(RELAYED))


def test_posthouse_that_relays_for_its_own_machine_is_to_be_tested_from_elsewhere() -> None:
    assert "--source" in sentence(reported(RELAYED), is_from_itself=True)


def test_lab_is_said_to_be_open_on_purpose() -> None:
    refused = CaseResult(
        411,
        "colon form",
        CaseVerdict.REFUSED,
        reply="550 5.7.1 This is a lab: it relays to third.test and nowhere else",
    )
    assert "on purpose" in sentence(reported(RELAYED, refused))


def test_host_that_relays_nothing_needs_no_remedy() -> None:
    assert find_remedy(reported()) is None
