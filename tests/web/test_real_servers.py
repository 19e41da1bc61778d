"""Real curl and nc on the mail host, real Postfix there: the truth is what arrived at the collector."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from peer_programs import environment, free_port, loopback_address, program, require_peer, run_client
from peer_servers import postfix_next_hop
from posthouse.tester.case import CASES
from posthouse.tester.verdict import CaseVerdict, HostVerdict
from posthouse_server import ADDRESS
from visiting import Site, site

pytestmark = pytest.mark.peer
DOMAIN = "collector.test"


@contextmanager
def collecting_site(mail_port: int) -> Iterator[tuple[Site, int]]:
    """A site that judges by what arrives at its own collector, and the collector's port."""
    port = free_port(ADDRESS)
    settings = f"""\
[[listener]]
address = "{ADDRESS}:{port}"
role = "collector"
[collector]
domains = ["{DOMAIN}"]
"""
    with site(settings, mail_port=mail_port) as web:
        yield web, port


def curl(web: Site, caller: str, *options: str) -> str:
    """What `curl -N` on the host prints."""
    arguments = ["-sS", "-N", "--max-time", "120", "--interface", caller, *options, f"{web.url}/test-me"]
    return run_client("curl", "usr/bin/curl", *arguments, timeout=130).stdout.decode()


def test_closed_postfix_is_found_closed_by_curl_and_by_nc() -> None:
    require_peer("curl", "netcat")
    port, caller = free_port(ADDRESS), loopback_address()
    with postfix_next_hop(["own.test"], port, caller), site(mail_port=port) as web:
        told = curl(web, caller)
        assert "< 220 postfix.test ESMTP" in told
        assert "\nverdict: closed: " in told
        judged = re.findall(r"^== (\d+) ", told, re.MULTILINE)
        assert len(set(judged)) == len(CASES)
        called = run_client(
            "netcat", "bin/nc.openbsd", "-s", caller, ADDRESS, str(web.call_port), timeout=130
        ).stdout.decode()
        assert "\nverdict: closed: " in called


def test_open_postfix_is_found_open_by_what_arrived_with_the_remedy_for_postfix() -> None:
    require_peer("curl")
    port, caller = free_port(ADDRESS), loopback_address()
    with collecting_site(port) as (web, collector_port):
        open_to_all = {
            "mynetworks": "0.0.0.0/0",
            "smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination",
            "relayhost": f"[{ADDRESS}]:{collector_port}",
        }
        with postfix_next_hop(["own.test"], port, caller, settings=open_to_all):
            told = curl(web, caller)
            assert "\n!! 101 plain third party: relayed" in told
            assert "\nverdict: open: " in told
            assert "the collector has it" in told
            assert "\nfix first: " in told
            document = web.visit("/test-me", caller=caller, accept="application/json").test
    assert document.verdict is HostVerdict.OPEN
    report = document.reports[0]
    assert report.is_collector_used
    assert {one.number: one.verdict for one in report.results}[101] is CaseVerdict.RELAYED
    assert report.paths
    assert document.remedy is not None


def test_stream_comes_as_it_happens_and_goes_on_for_others_when_one_hangs_up() -> None:
    require_peer("curl")
    port, caller = free_port(ADDRESS), loopback_address()
    with postfix_next_hop(["own.test"], port, caller), site(mail_port=port) as web:
        command = [program("curl", "usr/bin/curl"), "-sSN", "--interface", caller, f"{web.url}/test-me"]
        watching = [
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(environment("curl")))
            for _ in range(2)
        ]
        try:
            for one in watching:
                assert one.stdout is not None
                assert "RCPT" in next(line for line in one.stdout if "> RCPT" in line), "before the test is over"
            watching[0].kill()
            rest = watching[1].communicate(timeout=120)[0]
        finally:
            for one in watching:
                one.kill()
                one.wait()
        assert "\nverdict: closed: " in rest
