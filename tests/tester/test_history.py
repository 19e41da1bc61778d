"""Old results are kept, and what has changed is told."""

import msgspec
import pytest

from posthouse.tester import history
from posthouse.tester.report import CaseResult, Report, TlsNoted, from_json, to_json
from posthouse.tester.verdict import CaseVerdict, HostVerdict

CLOSED = Report(
    "mx.example.org",
    "192.0.2.1",
    25,
    HostVerdict.CLOSED,
    "closed",
    (
        CaseResult(101, "plain third party", CaseVerdict.REFUSED, reply="550 no"),
        CaseResult(102, "null sender", CaseVerdict.REFUSED),
    ),
    1_800_000_000.0,
    1.0,
    test_id=1,
)
OPEN = msgspec.structs.replace(
    CLOSED,
    verdict=HostVerdict.OPEN,
    software="postfix",
    tls=TlsNoted("offered"),
    results=(CaseResult(101, "plain third party", CaseVerdict.RELAYED, reply="250 ok"), CLOSED.results[1]),
    started_at=1_800_000_100.0,
    test_id=2,
)


def test_last_result_comes_back_as_it_was(tmp_path):
    assert history.last(tmp_path, "192.0.2.1", 25) is None
    history.keep(tmp_path, CLOSED)
    history.keep(tmp_path, OPEN)
    assert history.last(tmp_path, "192.0.2.1", 25) == OPEN
    assert history.last(tmp_path, "192.0.2.1", 587) is None


def test_changes_name_the_verdict_the_software_and_each_case():
    found = [str(change) for change in history.changes(CLOSED, OPEN)]
    assert found[0] == "verdict: closed -> open"
    assert "case 101, plain third party: refused (550 no) -> relayed (250 ok)" in found
    assert not any("102" in change for change in found)
    assert history.changes(OPEN, OPEN) == ()


def test_only_the_newest_results_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "KEPT_RESULTS", 3)
    for n in range(6):
        history.keep(tmp_path, msgspec.structs.replace(CLOSED, started_at=1_800_000_000.0 + n, test_id=n))
    files = list((tmp_path / history.HISTORY_DIRECTORY).rglob("*.json"))
    assert len(files) == 3
    assert history.last(tmp_path, "192.0.2.1", 25).test_id == 5


def test_result_that_is_damaged_is_a_fault_in_words(tmp_path):
    history.keep(tmp_path, CLOSED)
    (file,) = (tmp_path / history.HISTORY_DIRECTORY).rglob("*.json")
    file.write_bytes(b"{")
    with pytest.raises(history.HistoryFault, match="can't be read"):
        history.last(tmp_path, "192.0.2.1", 25)


def test_odd_address_leads_nowhere_else(tmp_path):
    history.keep(tmp_path, msgspec.structs.replace(CLOSED, address="../../../fe80::1%eth0"))
    (file,) = tmp_path.rglob("*.json")
    assert file.is_relative_to(tmp_path / history.HISTORY_DIRECTORY)


def test_report_survives_its_published_form():
    assert from_json(to_json(OPEN)) == OPEN
