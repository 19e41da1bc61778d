"""The test by calling: whoever calls has his own address tested, and nobody else's."""

import socket
import threading
from collections.abc import Iterator

import pytest

from peer_programs import loopback_address, wait_until
from posthouse.tester.echo import new_nonce
from posthouse.tester.token import new_key
from posthouse.tester.verdict import HostVerdict
from posthouse.web.document import State
from posthouse_server import ADDRESS
from visiting import SECONDS, Site, host, refusing, silent, site


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    """One site for all tests that bring addresses of their own."""
    with site() as found:
        yield found


def test_caller_is_tested_and_sees_the_dialogue_as_text_events_or_one_document(web: Site) -> None:
    with host(refusing(), web.mail_port) as caller:
        text = web.visit("/test-me", caller=caller)
        assert text.status == 200
        assert text.fields["content-type"] == "text/plain; charset=utf-8"
        assert caller in text.text.splitlines()[0]
        assert "> RCPT TO:<" in text.text
        assert "< 550 5.7.1 Relaying denied" in text.text
        assert "\nverdict: closed: " in text.text
        document = web.visit("/test-me", caller=caller, accept="application/json").test
        assert (document.state, document.verdict, document.address) == (State.DONE, HostVerdict.CLOSED, caller)
        assert len(document.reports[0].results) > 40
        events = web.visit("/test-me", caller=caller, accept="text/event-stream").text
        assert events.count("event: case\n") >= 40
        assert events.rstrip().split("\n\n")[-1].splitlines()[1] == "event: done"


def test_bare_call_shows_the_same_and_reads_nothing(web: Site) -> None:
    with host(refusing(), web.mail_port) as caller:
        told = web.call(caller)
        assert told.splitlines()[0].startswith(f"Posthouse relay test of {caller}")
        assert "\nverdict: closed: " in told
        with socket.create_connection((ADDRESS, web.call_port), SECONDS, source_address=(caller, 0)) as connection:
            connection.sendall(b"test 192.0.2.1 please\r\n" * 1000)
            octets = b""
            while more := connection.recv(65536):
                octets += more
        assert b"192.0.2.1" not in octets
        assert b"verdict: closed" in octets


@pytest.mark.parametrize("query", ["address=192.0.2.1", "host=mx.example.org", "ip=192.0.2.1&nonce="])
def test_no_parameter_names_another_address(web: Site, query: str) -> None:
    answer = web.visit(f"/test-me?{query}")
    assert answer.status == 400
    assert "your own address" in answer.text


def test_address_in_a_header_is_believed_from_a_configured_proxy_alone(web: Site) -> None:
    refused = web.visit("/test-me", accept="application/json", x_forwarded_for="127.1.2.3")
    assert refused.status == 403
    assert refused.json["type"].endswith("#proxy")
    assert web.visit("/test-me", via="1.1 squid").status == 403
    with site(web=f'proxies = ["{ADDRESS}"]') as behind, host(refusing(), behind.mail_port) as caller:
        believed = behind.visit("/test-me", accept="application/json", x_forwarded_for=f"192.0.2.1, {caller}")
        assert believed.test.address == caller
        assert behind.visit("/test-me").status == 403, "a proxy that does not say for whom it asks is not tested itself"
        assert behind.visit("/test-me", x_forwarded_for="nonsense").status == 400
        stranger = loopback_address()
        assert behind.visit("/test-me", caller=stranger, x_forwarded_for=caller).status == 403


def test_second_caller_from_the_address_joins_and_another_waits_with_a_place_in_the_queue() -> None:
    over = threading.Event()
    with site(web="at_once = 1\nqueue = 1") as web, host(silent(over), web.mail_port) as first:
        try:
            second, third = loopback_address(), loopback_address()
            created = web.post("/api/tests", {}, first)
            assert created.status == 201
            test = created.test
            wait_until(lambda: web.visit(test.links.document).test.state is State.RUNNING, "the test to begin")
            assert web.post("/api/tests", {}, first).test.id == test.id
            waiting = web.post("/api/tests", {}, second).test
            assert waiting.state is State.QUEUED
            assert waiting.queue is not None
            assert (waiting.queue.place, waiting.queue.waiting, waiting.queue.running) == (1, 1, 1)
            full = web.post("/api/tests", {}, third)
            assert full.status == 503
            assert full.json["type"].endswith("#queue-full")
            assert int(full.fields["retry-after"]) > 0
            assert web.visit("/health").json == {"status": "ok", "version": full_version(), "running": 1, "waiting": 1}
            page = web.visit(waiting.links.page).text
            assert "number 1 of 1 in the queue" in page
        finally:
            over.set()


def full_version() -> str:
    import posthouse

    return posthouse.__version__


def test_rates_hold_for_each_address_and_are_told() -> None:
    with site(web="tests_per_address = 2\ntests_in_all = 3") as web, host(refusing(), web.mail_port) as caller:
        for _ in range(2):
            assert web.visit("/test-me", caller=caller, accept="application/json").test.verdict is HostVerdict.CLOSED
        refused = web.visit("/test-me", caller=caller, accept="application/json")
        assert refused.status == 429
        assert 3000 < int(refused.fields["retry-after"]) <= 3600
        assert "try again in" in refused.json["detail"]
        assert web.call(caller).startswith("no test: ")
        other, another = loopback_address(), loopback_address()
        assert web.visit("/test-me", caller=other).status == 200
        assert web.visit("/test-me", caller=another).status == 429, "all together have had enough"


def test_nonce_goes_into_the_name_that_the_tester_says(web: Site) -> None:
    heard: list[str] = []
    with host(refusing(heard=heard), web.mail_port) as caller:
        assert web.visit("/test-me?nonce=nonsense", caller=caller).status == 400
        nonce = new_nonce(new_key(), 1_800_000_000.0)
        test = web.visit(f"/test-me?nonce={nonce}", caller=caller, accept="application/json").test
        assert test.verdict is HostVerdict.CLOSED
        assert any(line.startswith(f"EHLO {nonce[:13]}-") and ".echo." in line for line in heard)


def test_host_cannot_write_on_its_owners_terminal_or_page(web: Site) -> None:
    banner = "220 stub.test \x1b[2J\x1b]0;owned\x07 <script>alert(1)</script>"
    with host(refusing(banner), web.mail_port) as caller:
        text = web.visit("/test-me", caller=caller)
        assert b"\x1b" not in text.octets
        page = web.visit(text.fields["content-location"].removeprefix("/api"))
        assert b"\x1b" not in page.octets
        assert "<script>alert" not in page.text
        assert "&lt;script&gt;alert(1)" in page.text


def test_host_that_floods_gets_no_verdict_and_harms_nobody(web: Site) -> None:
    def flood(connection: socket.socket) -> None:
        for _ in range(2000):
            connection.sendall(b"220-" + b"x" * 2000 + b"\r\n")

    with host(flood, web.mail_port) as caller, host(refusing(), web.mail_port) as good:
        test = web.visit("/test-me", caller=caller, accept="application/json").test
        assert test.verdict is HostVerdict.UNKNOWN
        assert web.visit("/test-me", caller=good, accept="application/json").test.verdict is HostVerdict.CLOSED


def test_caller_without_a_mail_server_is_told_so(web: Site) -> None:
    test = web.visit("/test-me", caller=loopback_address(), accept="application/json").test
    assert test.verdict is HostVerdict.UNKNOWN
    assert not test.ports[0].is_open
    assert "no port answers" in test.words
