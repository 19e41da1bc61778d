"""Control over a host shown by the DNS, by the banner, by postmaster; and what does not show it."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from dns_server import Zone, lying_server
from peer_programs import wait_until
from posthouse.dns.resolver import Resolver
from posthouse.policy.networks import NetworkSet
from posthouse.tester import proving
from posthouse.tester.consent import Consent, ConsentRules, Method, Proof, read_do_not_test
from posthouse.tester.office import Office
from posthouse.tester.proving import MOST_LETTERS, Host, Identity, Missing, prove
from posthouse.tester.token import TokenKey
from posthouse_server import posthouse

KEY = TokenKey(b"k" * 32)
IDENTITY = Identity("tester.test", "relay-test@tester.test", "postmaster@tester.test")
PUBLIC = ip_address("9.9.9.9")
PTR = "9.9.9.9.in-addr.arpa."


@pytest.fixture
def office(tmp_path: Path) -> Office:
    rules = ConsentRules(NetworkSet(()), frozenset(), read_do_not_test(()))
    return Office(tmp_path / "consent.db", lambda: rules, lambda: KEY)


def by_dns(office: Office, host: Host, *records: str) -> Proof | Missing:
    async def ask() -> Proof | Missing:
        async with lying_server(Zone(*records)) as names:
            resolver = Resolver((names.server,), timeout=5.0)
            try:
                return await prove(office, Method.DNS, host, resolver, IDENTITY)
            finally:
                resolver.close()

    return asyncio.run(ask())


def test_record_in_the_dns_proves_control_where_the_host_bears_the_name(office: Office) -> None:
    host = Host("mx.example.org", PUBLIC)
    missing = by_dns(office, host)
    assert isinstance(missing, Missing)
    assert missing.todo == (f'_posthouse-test.mx.example.org. IN TXT "{missing.token}"',)
    record = f'_posthouse-test.mx.example.org. 60 IN TXT "v=1; {missing.token[:20]}" "{missing.token[20:]}"'
    proof = by_dns(office, host, record, f"{PTR} 60 IN PTR MX.example.org.")
    assert isinstance(proof, Proof)
    assert isinstance(office.look("mx.example.org", PUBLIC), Consent)


def test_name_below_the_proved_one_bears_it_out_and_an_address_is_called_by_its_reverse_name(office: Office) -> None:
    token = by_dns(office, Host("example.org", PUBLIC)).token  # type: ignore[union-attr]
    record = f'_posthouse-test.example.org. 60 IN TXT "{token}"'
    assert isinstance(by_dns(office, Host("Example.org.", PUBLIC), record, f"{PTR} 60 IN PTR mx1.example.org."), Proof)
    named = f"{PTR} 60 IN PTR mx.example.net."
    token = by_dns(office, Host("9.9.9.9", PUBLIC), named).token  # type: ignore[union-attr]
    record = f'_posthouse-test.mx.example.net. 60 IN TXT "{token}"'
    assert isinstance(by_dns(office, Host("9.9.9.9", PUBLIC), named, record), Proof)
    assert "no reverse name" in by_dns(office, Host("9.9.9.10", ip_address("9.9.9.10"))).words  # type: ignore[union-attr]


@pytest.mark.parametrize("wrong", ["other", "x", "of-another-host", "by-banner"])
def test_other_texts_prove_nothing(office: Office, wrong: str) -> None:
    host = Host("mx.example.org", ip_address("10.0.0.1"))
    texts = {
        "other": Office(Path("/nonexistent"), office._rules, lambda: TokenKey(b"x" * 32)),
        "x": "v=spf1 -all",
        "of-another-host": office.challenge("dns mx.example.net"),
        "by-banner": office.challenge("banner 10.0.0.1"),
    }
    text = texts[wrong] if isinstance(texts[wrong], str) else "a" * 32
    answer = by_dns(office, host, f'_posthouse-test.mx.example.org. 60 IN TXT "{text}"')
    assert isinstance(answer, Missing)
    assert "holds another text" in answer.words


@contextlib.asynccontextmanager
async def greeting(*lines: bytes) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(line + b"\r\n" for line in lines))
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readline()
            writer.write(b"221 bye\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def by_banner(office: Office, *lines: bytes) -> Proof | Missing:
    async def ask() -> Proof | Missing:
        async with greeting(*lines) as port:
            host = Host("mx.test", ip_address("127.0.0.1"), port)
            return await prove(office, Method.BANNER, host, Resolver(()), IDENTITY)

    return asyncio.run(ask())


def test_token_in_the_greeting_proves_control_whatever_its_code(office: Office) -> None:
    missing = by_banner(office, b"220 mx.test ESMTP")
    assert isinstance(missing, Missing)
    assert any(f"smtpd_banner = $myhostname ESMTP {missing.token}" in line for line in missing.todo)
    token = missing.token.upper().encode()
    assert isinstance(by_banner(office, b"220-mx.test", b"220 ESMTP " + token), Proof)
    assert isinstance(by_banner(office, b"421 mx.test closed for " + token), Proof)
    assert isinstance(by_banner(office, b"554 " + token), Proof)
    assert isinstance(by_banner(office, b"hello " + token), Missing)


def test_greeting_of_another_host_does_not_tie_a_name_to_an_address(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may point at anybody: else whoever has a domain could have any host tested."""
    monkeypatch.setattr(proving, "is_public", lambda _address: True)

    def ask(banner: bytes) -> Proof | Missing:
        async def inner() -> Proof | Missing:
            async with greeting(banner) as port, lying_server(Zone(record)) as names:
                resolver = Resolver((names.server,), timeout=5.0)
                host = Host("evil.test", ip_address("127.0.0.1"), port)
                return await prove(office, Method.DNS, host, resolver, IDENTITY)

        return asyncio.run(inner())

    record = f'_posthouse-test.evil.test. 60 IN TXT "{office.challenge("dns evil.test")}"'
    answer = ask(b"220 victim.test ESMTP")
    assert isinstance(answer, Missing)
    assert "nothing ties evil.test to 127.0.0.1, which is called victim.test" in answer.words
    assert isinstance(ask(b"220 mx.notevil.test ESMTP"), Missing)
    assert isinstance(ask(b"220 mx.evil.test ESMTP"), Proof)


def test_unprivileged_port_of_a_public_host_proves_nothing(office: Office) -> None:
    for method in (Method.BANNER, Method.POSTMASTER):
        answer = asyncio.run(prove(office, method, Host("x", PUBLIC, 2525), Resolver(()), IDENTITY))
        assert isinstance(answer, Missing)
        assert "prove control on port 25" in answer.words


def test_letter_to_postmaster_of_a_real_server_brings_the_token(office: Office) -> None:
    with posthouse('[limits]\nfree_space = "1MB"\n') as server:
        host = Host("mx.test", ip_address("127.0.0.1"), server.port)

        def ask(typed: str = "") -> Proof | Missing:
            return asyncio.run(prove(office, Method.POSTMASTER, host, Resolver(()), IDENTITY, typed))

        sent = ask()
        assert isinstance(sent, Missing)
        assert sent.token == "", "it is for the postmaster's eyes"
        box = server.data_dir / "postmaster" / "new"
        wait_until(lambda: box.is_dir() and any(box.iterdir()), "the letter")
        letter = next(iter(box.iterdir())).read_text()
        assert "Return-Path: <relay-test@tester.test>" in letter
        assert "write to postmaster@tester.test" in letter
        token = re.search(r"^    ([a-z2-7]{32})\r?$", letter, re.MULTILINE)
        assert token is not None
        assert "expired" not in letter
        for wrong in ("a" * 32, "not a token", office.challenge("banner 127.0.0.1")):
            assert "not the token" in ask(wrong).words  # type: ignore[union-attr]
        assert isinstance(ask(f" {token[1].upper()}\n"), Proof)
        letters = [ask() for _ in range(MOST_LETTERS)]
        assert "3 letters went" in letters[-1].words  # type: ignore[union-attr]


def test_host_that_is_not_there_or_refuses_the_letter_is_said_to_be_so(office: Office) -> None:
    async def ask(port: int, method: Method) -> str:
        host = Host("mx.test", ip_address("127.0.0.1"), port)
        answer = await prove(office, method, host, Resolver(()), IDENTITY)
        assert isinstance(answer, Missing)
        return answer.words

    async def ask_refusing() -> str:
        async with greeting(b"554 not for you") as port:
            return await ask(port, Method.POSTMASTER)

    assert "connection refused" in asyncio.run(ask(1, Method.BANNER))
    assert "connection refused" in asyncio.run(ask(1, Method.POSTMASTER))
    assert "554 not for you" in asyncio.run(ask_refusing())


@pytest.mark.parametrize("method", Method)
def test_host_that_is_never_tested_is_not_asked_for_a_proof_either(tmp_path: Path, method: Method) -> None:
    rules = ConsentRules(NetworkSet(()), frozenset(), read_do_not_test(["127.0.0.0/8"]))
    office = Office(tmp_path / "consent.db", lambda: rules, lambda: KEY)
    visits: list[int] = []

    async def go() -> Proof | Missing:
        async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            visits.append(1)
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        resolver = Resolver(())
        try:
            host = Host("mx.example.org", ip_address("127.0.0.1"), server.sockets[0].getsockname()[1])
            return await prove(office, method, host, resolver, IDENTITY)
        finally:
            resolver.close()
            server.close()

    missing = asyncio.run(go())
    assert isinstance(missing, Missing)
    assert "is never tested" in missing.words
    assert not missing.token
    assert not visits
