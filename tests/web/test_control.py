"""Control of a host is shown by its own owner, for himself: no stranger rides on his token, nor on what is ours."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dns_server import Zone, lying_server
from peer_programs import loopback_address, wait_until
from posthouse.tester.verdict import HostVerdict
from posthouse.web.document import RelayTest, State
from visiting import Site, host, refusing, site


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    with site(web="tests_per_address = 1000\nprivate_hosts = true") as found:
        yield found


def begun(web: Site, host_name: str, caller: str = "127.0.0.1") -> RelayTest:
    answer = web.post("/api/tests", {"host": host_name}, caller)
    assert answer.status == 201, answer.text
    assert answer.test.state is State.UNPROVED
    return answer.test


def token_of(test: RelayTest, way: str) -> str:
    assert test.proof is not None
    return next(one.what.strip('"') for one in test.proof.ways if one.way == way)


def look(web: Site, test: RelayTest, way: str, answer: str = "", caller: str = "127.0.0.1") -> tuple[int, str]:
    """The status, and why not."""
    found = web.post(f"{test.links.document}/proof", {"way": way, "answer": answer}, caller)
    return found.status, "" if found.status == 200 else found.json["detail"]


def ended(web: Site, test: RelayTest) -> RelayTest:
    wait_until(lambda: web.visit(test.links.document).test.state.is_over, "the test to end", 60)
    return web.visit(test.links.document).test


def test_token_in_the_greeting_lets_its_asker_test_and_nobody_else(web: Site) -> None:
    address = loopback_address()
    mine, other = begun(web, address), begun(web, address)
    token = token_of(mine, "banner")
    assert token != token_of(other, "banner"), "each asker has tokens of his own"
    with host(refusing(), web.mail_port, address):
        status, why = look(web, mine, "banner")
        assert status == 422
        assert "does not hold the token" in why
        assert "command" not in why, "words for the page, not for the command line"
    with host(refusing(f"220 stub.test ESMTP {token}"), web.mail_port, address):
        assert look(web, other, "banner")[0] == 422, "the greeting can be read by everybody"
        assert look(web, mine, "banner") == (200, "")
        assert ended(web, mine).verdict is HostVerdict.CLOSED
        again = begun(web, address)
        assert look(web, again, "postmaster", "nonsense")[0] == 422
        assert look(web, again, "banner")[0] == 422, "one proof does not open the host to the next visitor"


def test_postmaster_gets_a_letter_and_its_token_opens_the_test(web: Site) -> None:
    address, heard = loopback_address(), list[str]()

    def take_letters(connection: socket.socket) -> None:
        stream = connection.makefile("rwb")
        stream.write(b"220 stub.test ESMTP\r\n")
        stream.flush()
        for line in stream:
            heard.append(line.decode("latin-1").rstrip("\r\n"))
            if heard[-1] == "DATA":
                stream.write(b"354 go on\r\n")
                stream.flush()
                heard.extend([text.decode("latin-1").rstrip("\r\n") for text in iter(stream.readline, b".\r\n")])
            stream.write(b"250 ok\r\n")
            stream.flush()

    test = begun(web, address)
    with host(take_letters, web.mail_port, address):
        status, why = look(web, test, "postmaster")
    assert status == 422
    assert "letter" in why
    assert "RCPT TO:<postmaster>" in heard
    token = next(line.strip() for line in heard if len(line.strip()) == 32 and line.startswith("    "))
    assert look(web, test, "postmaster", token[::-1])[0] == 422
    for _ in range(10):
        status, why = look(web, begun(web, address), "postmaster", caller="127.0.0.3")
    assert (status, "postmasters" in why) == (429, True), "a page is no way to send mail to strangers"
    with host(refusing(), web.mail_port, address):
        assert look(web, test, "postmaster", token) == (200, "")
        assert ended(web, test).verdict is HostVerdict.CLOSED


@contextmanager
def serving_zone(zone: Zone) -> Iterator[str]:
    """A name server beside the test; where it is, for [resolver]."""
    found: list[str] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with lying_server(zone) as server:
            found.append(f"{server.server.host}:{server.server.port}")
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        over.set()
        thread.join()


def test_record_in_the_dns_shows_control_of_a_name() -> None:
    address = loopback_address()
    records = [f"mx.own.test. 1 IN A {address}"]
    zone = Zone(*records)
    with (
        serving_zone(zone) as server,
        site(f'[resolver]\nservers = ["{server}"]\ntimeout = "10s"', "private_hosts = true") as web,
        host(refusing(), web.mail_port, address),
    ):
        test = begun(web, "MX.own.test.")
        assert (test.host, test.address) == ("mx.own.test", address)
        status, why = look(web, test, "dns")
        assert status == 422
        assert "_posthouse-test.mx.own.test" in why
        zone.__init__(*records, f'_posthouse-test.mx.own.test. 1 IN TXT "{token_of(test, "dns")}"')  # type: ignore[misc]
        assert look(web, test, "dns") == (200, "")
        assert ended(web, test).verdict is HostVerdict.CLOSED
        assert web.post("/api/tests", {"host": "nowhere.test"}).status == 400


def test_hosts_inside_are_not_tested_for_visitors_however_they_are_written() -> None:
    with site() as web:
        for name in ("127.0.0.1", "10.0.0.1", "[::1]", "::ffff:127.0.0.1", "169.254.169.254", "0.0.0.0", "[fe80::1]"):
            answer = web.post("/api/tests", {"host": name})
            assert answer.status == 403, name
            assert answer.json["type"].endswith("#not-testable")
        for name in (
            "localhost",
            "0x7f.1",
            "2130706433",
            "mx.example.org:22",
            "a b",
            "",
            "x" * 300,
            "user@mx.example.org",
        ):
            assert web.post("/api/tests", {"host": name}).status in (400, 403, 201 if not name else 400), name
    with site('[tester]\ndo_not_test = ["127.99.0.0/16"]', "private_hosts = true") as web:
        answer = web.post("/api/tests", {"host": "127.99.1.2"})
        assert answer.status == 403
        assert "never tested" in answer.json["detail"]
        called = web.visit("/test-me", caller="127.99.1.2", accept="application/json").test
        assert called.state is State.FAILED
        assert "never tested" in called.words
