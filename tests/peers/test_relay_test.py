"""`posthouse test` against real servers and a real collector: the verdict is what truly arrived."""

import asyncio
import json
import time

import pytest

from collecting import Collecting, collecting
from peer_servers import exim_next_hop, postfix_next_hop
from posthouse.tester import message
from posthouse.tester.prober import ProberSettings, probe
from posthouse.tester.report import Target
from posthouse.tester.verdict import CaseVerdict, HostVerdict

pytestmark = [pytest.mark.peer, pytest.mark.slow]

STOCK = {
    # As Debian delivers it: strangers are deferred, and the error limits are the program's own.
    "smtpd_relay_restrictions": "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination",
    "mydestination": "here.test, localhost",
    "virtual_mailbox_domains": "",
    "local_transport": "discard",
    "smtpd_client_connection_count_limit": "50",
}
OPEN = {
    "mynetworks": "0.0.0.0/0",
    "smtpd_relay_restrictions": "permit_mynetworks, reject",
    "local_transport": "discard",
}


def report_of(collector: Collecting, port: int, *options: str, status: int) -> dict:
    """The one report of `posthouse test --json`."""
    done = collector.server.command(
        "test", f"127.0.0.1:{port}", "--domain", "here.test", "--json", *options, check=False
    )
    assert done.returncode == status, f"{done.stdout[:2000]}\n{done.stderr}"
    document = json.loads(done.stdout)
    assert len(document["reports"]) == 1
    return document["reports"][0]


def numbers(report: dict, verdict: CaseVerdict) -> set[int]:
    return {result["number"] for result in report["results"] if result["verdict"] == verdict}


def test_stock_postfix_is_closed_and_its_error_limits_are_never_reached() -> None:
    with postfix_next_hop(["here.test"], settings=STOCK) as postfix:
        settings = ProberSettings(message.Tester("tester.test", "postmaster@tester.test"))
        began = time.monotonic()
        report = asyncio.run(probe(Target("127.0.0.1", postfix.port, domain="here.test"), settings))
        took = time.monotonic() - began
        log = (postfix.directory / "mail.log").read_text()
    assert report.verdict is HostVerdict.CLOSED, report.words
    assert len(report.results) - report.count.get(CaseVerdict.NOT_TRIED, 0) >= 40
    assert "too many errors" not in log
    assert report.software == "postfix"
    # Each second would be one error too many in a session; a busy machine may need some for itself.
    assert took < 15, f"{took:.1f} s"


def test_open_postfix_is_relayed_and_the_collector_has_every_probe() -> None:
    with collecting() as collector:
        hop = {**OPEN, "relayhost": f"[127.0.0.1]:{collector.port}"}
        with postfix_next_hop(["here.test"], settings=hop) as postfix:
            report = report_of(collector, postfix.port, status=1)
    assert report["verdict"] == HostVerdict.OPEN
    assert {101, 102, 103, 401, 703, 801, 804} <= numbers(report, CaseVerdict.RELAYED)
    assert not numbers(report, CaseVerdict.ACCEPTED)
    assert report["paths"][0]["output_hello_name"] == "postfix.test"
    assert not report["paths"][0]["is_multi_hop"]
    assert report["remedy"]["software"] == "postfix"


def test_relay_that_throws_everything_away_is_accepted_and_not_delivered() -> None:
    with (
        collecting() as collector,
        postfix_next_hop(["here.test"], settings={**OPEN, "default_transport": "discard"}) as hop,
    ):
        report = report_of(collector, hop.port, "--case", "101", "--case", "102", "--delivery", "2", status=3)
        assert numbers(report, CaseVerdict.NOT_DELIVERED) == {101, 102}
        assert "nothing arrived" in report["words"]
        report = report_of(collector, hop.port, "--case", "101", "--collector", "none", status=1)
        assert numbers(report, CaseVerdict.ACCEPTED) == {101}
        assert "accepted, delivery not observed" in report["words"]


def test_open_edge_in_front_of_a_smart_host_is_told_apart_from_it() -> None:
    with collecting() as collector:
        smart_settings = {**OPEN, "myhostname": "smart.test", "relayhost": f"[127.0.0.1]:{collector.port}"}
        with postfix_next_hop(["here.test"], settings=smart_settings) as smart:
            edge_settings = {**OPEN, "myhostname": "edge.test", "relayhost": f"[127.0.0.1]:{smart.port}"}
            with postfix_next_hop(["here.test"], settings=edge_settings) as edge:
                report = report_of(collector, edge.port, "--case", "101", status=1)
    path = report["paths"][0]
    assert path["is_multi_hop"]
    assert path["output_hello_name"] == "smart.test"
    assert len(path["hops"]) == 2


def test_notice_to_a_third_party_is_told_and_is_no_relaying() -> None:
    """Backscatter: it takes mail for anybody of its domain, and finds out later that there is nobody."""
    with collecting() as collector:
        late = {
            **STOCK,
            "mydestination": "",
            "virtual_mailbox_domains": "here.test",
            "virtual_transport": f"smtp:[127.0.0.1]:{collector.port}",  # where that user is refused, too late
            "relayhost": f"[127.0.0.1]:{collector.port}",
        }
        with postfix_next_hop(["here.test"], settings=late) as postfix:
            report = report_of(collector, postfix.port, "--case", "101", "--case", "606", "--delivery", "20", status=0)
    assert numbers(report, CaseVerdict.BOUNCED) == {606}
    assert any("backscatter" in doubt for doubt in report["doubts"])


def test_exim_that_denies_routing_characters_is_closed() -> None:
    with (
        collecting() as collector,
        exim_next_hop(["here.test"], answers={"^.*[@%!/|].*@": "550 restricted characters"}) as exim,
    ):
        report = report_of(collector, exim.port, "--delivery", "1", status=0)
    assert report["verdict"] == HostVerdict.CLOSED, report["words"]
    assert report["software"] == "exim"


def test_posthouse_itself_is_closed() -> None:
    with collecting() as collector:
        report = report_of(collector, collector.server.port, "--source", "127.0.0.2", "--delivery", "1", status=0)
    assert report["software"] == "posthouse"
