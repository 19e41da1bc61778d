"""The resolver against a name server that lies, keeps silent, cuts short and loops."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar

import dns.flags
import dns.message
import dns.rcode
import pytest

from dns_server import Behaviour, LyingServer, Zone, answer, lying_server, truncated
from posthouse.dns.exchange import Server
from posthouse.dns.resolver import (
    LONGEST_NEGATIVE_TTL,
    LONGEST_TTL,
    Answer,
    LookupFailed,
    MailExchange,
    NoData,
    NoName,
    Resolver,
    is_host_name,
    system_servers,
)

T = TypeVar("T")
ADDRESS = "mx.test. 60 IN A 192.0.2.1"


def ask(
    behaviour: Behaviour,
    question: Callable[[Resolver, LyingServer], Awaitable[T]],
    over_tcp: Behaviour | None = None,
    seconds: float = 20.0,
) -> T:
    async def run() -> T:
        async with lying_server(behaviour, over_tcp) as liar:
            return await question(Resolver([liar.server], timeout=seconds), liar)

    return asyncio.run(run())


def test_addresses_of_both_families_are_found() -> None:
    zone = Zone(ADDRESS, "mx.test. 60 IN AAAA 2001:db8::1")

    async def question(resolver: Resolver, _: LyingServer) -> tuple[object, object]:
        return await resolver.ipv4_addresses("MX.test."), await resolver.ipv6_addresses("mx.test")

    assert ask(zone, question) == (
        Answer((IPv4Address("192.0.2.1"),), 60, "mx.test"),
        Answer((IPv6Address("2001:db8::1"),), 60, "mx.test"),
    )


def test_mail_exchanges_are_lower_case_without_the_final_dot_and_the_root_is_empty() -> None:
    zone = Zone("a.test. 60 IN MX 10 Mail.A.Test.", "null.test. 60 IN MX 0 .")

    async def question(resolver: Resolver, _: LyingServer) -> tuple[object, object]:
        return await resolver.mail_exchanges("a.test"), await resolver.mail_exchanges("null.test")

    assert ask(zone, question) == (
        Answer((MailExchange(10, "mail.a.test"),), 60, "a.test"),
        Answer((MailExchange(0, ""),), 60, "null.test"),
    )


def test_a_name_that_does_not_exist_is_an_answer_and_so_is_one_without_such_records() -> None:
    async def question(resolver: Resolver, _: LyingServer) -> tuple[object, object]:
        return await resolver.mail_exchanges("nowhere.test"), await resolver.mail_exchanges("mx.test")

    assert ask(Zone(ADDRESS), question) == (NoName(60), NoData(60))


@pytest.mark.parametrize(
    "name", ["a..test", "x" * 64 + ".test", "a b.test", "ä.test", "\\000.test", "", ".", "a." * 127 + "aa"]
)
def test_what_cannot_be_a_name_is_not_asked(name: str) -> None:
    async def question(resolver: Resolver, liar: LyingServer) -> tuple[object, int]:
        return await resolver.ipv4_addresses(name), liar.queries

    assert ask(Zone(ADDRESS), question) == (NoName(LONGEST_NEGATIVE_TTL), 0)


@pytest.mark.parametrize("code", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
def test_a_server_that_fails_leaves_the_question_open(code: int) -> None:
    async def question(resolver: Resolver, _: LyingServer) -> object:
        return await resolver.ipv4_addresses("mx.test")

    found = ask(lambda query: [answer(query, code=code)], question)
    assert isinstance(found, LookupFailed)
    assert dns.rcode.to_text(dns.rcode.from_text(dns.rcode.to_text(code))) in found.words


def test_a_server_that_names_others_to_ask_has_not_said_that_there_is_nothing() -> None:
    """A lame one, or one that does not recurse: its referral is no answer (RFC 2308 2.2), so the mail waits."""

    def lame(query: dns.message.QueryMessage) -> list[bytes | tuple[float, bytes]]:
        return [answer(query, authority="test. 60 IN NS ns.elsewhere.test.")]

    async def question(resolver: Resolver, _: LyingServer) -> object:
        return await resolver.mail_exchanges("mx.test")

    found = ask(lame, question)
    assert isinstance(found, LookupFailed)
    assert "names others to ask" in found.words


def test_silence_ends_after_the_timeout_and_is_asked_twice() -> None:
    async def question(resolver: Resolver, liar: LyingServer) -> tuple[object, int]:
        return await resolver.ipv4_addresses("mx.test"), liar.queries

    found, queries = ask(lambda query: [], question, seconds=0.4)
    assert isinstance(found, LookupFailed)
    assert "did not answer" in found.words
    assert queries == 2


def test_the_second_server_is_asked_when_the_first_is_silent_or_not_there() -> None:
    async def run() -> tuple[object, object]:
        async with lying_server(lambda query: []) as silent, lying_server(Zone(ADDRESS)) as good:
            first = Resolver([silent.server, good.server], timeout=8)
            nobody = Server("127.0.0.1", 1)
            second = Resolver([nobody, good.server], timeout=8)
            return await first.ipv4_addresses("mx.test"), await second.ipv4_addresses("mx.test")

    for found in asyncio.run(run()):
        assert isinstance(found, Answer)


def test_a_truncated_answer_is_asked_for_over_tcp() -> None:
    zone = Zone(*(f"many.test. 60 IN MX {number} mx{number}.many.test." for number in range(300)))

    async def question(resolver: Resolver, liar: LyingServer) -> tuple[object, int]:
        return await resolver.mail_exchanges("many.test"), liar.tcp_queries

    found, tcp_queries = ask(truncated, question, over_tcp=zone)
    assert isinstance(found, Answer)
    assert len(found.records) == 300
    assert tcp_queries == 1


def test_a_forged_answer_is_passed_over_and_the_true_one_taken() -> None:
    def forge_first(query: dns.message.QueryMessage) -> list[bytes | tuple[float, bytes]]:
        forged = dns.message.from_wire(answer(query, "mx.test. 60 IN A 203.0.113.66"))
        forged.id = query.id ^ 1
        other = dns.message.from_wire(
            answer(dns.message.make_query("else.test", "A", id=query.id), "else.test. 60 IN A 203.0.113.66")
        )
        question_again = dns.message.from_wire(query.to_wire())
        junk = query.to_wire()[:2] + b"\x81\x80" + b"\xff" * 40
        lies = [forged.to_wire(), other.to_wire(), question_again.to_wire(), junk, b"", b"\0"]
        return [*lies, (0.05, answer(query, ADDRESS))]

    async def question(resolver: Resolver, _: LyingServer) -> object:
        return await resolver.ipv4_addresses("mx.test")

    assert ask(forge_first, question) == Answer((IPv4Address("192.0.2.1"),), 60, "mx.test")


def test_an_answer_that_comes_too_late_harms_nobody() -> None:
    async def question(resolver: Resolver, _: LyingServer) -> object:
        found = await resolver.ipv4_addresses("mx.test")
        await asyncio.sleep(0.3)
        return found

    assert isinstance(ask(lambda query: [(0.25, answer(query, ADDRESS))], question, seconds=0.2), LookupFailed)


def test_a_chain_of_aliases_is_followed_within_one_answer_and_across_answers() -> None:
    whole = Zone("a.test. 30 IN CNAME b.test.", "b.test. 60 IN CNAME mx.test.", ADDRESS)

    def in_parts(query: dns.message.QueryMessage) -> list[bytes | tuple[float, bytes]]:
        if query.question[0].name.to_text() == "a.test.":
            return [answer(query, "a.test. 30 IN CNAME mx.test.")]
        return [answer(query, ADDRESS)]

    async def question(resolver: Resolver, _: LyingServer) -> object:
        return await resolver.ipv4_addresses("a.test")

    expected = Answer((IPv4Address("192.0.2.1"),), 30, "mx.test")
    assert ask(whole, question) == expected
    assert ask(in_parts, question) == expected


def test_a_loop_of_aliases_has_an_end() -> None:
    def across(query: dns.message.QueryMessage) -> list[bytes | tuple[float, bytes]]:
        name = query.question[0].name.to_text()
        return [answer(query, f"{name} 60 IN CNAME {'b' if name == 'a.test.' else 'a'}.test.")]

    async def question(resolver: Resolver, liar: LyingServer) -> tuple[object, int]:
        return await resolver.ipv4_addresses("a.test"), liar.queries

    for behaviour in (Zone("a.test. 60 IN CNAME b.test.", "b.test. 60 IN CNAME a.test."), across):
        found, queries = ask(behaviour, question)
        assert isinstance(found, LookupFailed)
        assert queries <= 8


def test_an_alias_to_nowhere_is_no_name() -> None:
    async def question(resolver: Resolver, _: LyingServer) -> object:
        return await resolver.ipv4_addresses("a.test")

    assert isinstance(ask(Zone("a.test. 60 IN CNAME gone.test."), question), NoName)


def test_a_server_that_does_not_know_edns_is_asked_without() -> None:
    def old(query: dns.message.QueryMessage) -> list[bytes | tuple[float, bytes]]:
        return [answer(query, ADDRESS) if query.edns < 0 else answer(query, code=dns.rcode.FORMERR)]

    async def question(resolver: Resolver, _: LyingServer) -> object:
        return await resolver.ipv4_addresses("mx.test")

    assert isinstance(ask(old, question), Answer)


def test_many_who_ask_at_once_share_one_question_and_one_who_leaves_does_not_take_it_along() -> None:
    async def question(resolver: Resolver, liar: LyingServer) -> tuple[list[object], int]:
        tasks = [asyncio.create_task(resolver.ipv4_addresses("mx.test")) for _ in range(50)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        found: list[object] = list(await asyncio.gather(*tasks[1:]))
        return found, liar.queries

    found, queries = ask(lambda query: [(0.05, answer(query, ADDRESS))], question)
    assert all(isinstance(one, Answer) for one in found)
    assert queries == 1


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_answers_are_kept_for_their_ttl_within_bounds_and_failures_are_not() -> None:
    clock = Clock()
    zone = Zone(ADDRESS, "long.test. 999999 IN A 192.0.2.2", "zero.test. 0 IN A 192.0.2.3")

    async def run() -> None:
        async with lying_server(zone) as liar:
            resolver = Resolver([liar.server], timeout=20, clock=clock)
            asked = 0
            for at, name, new_questions in [
                (0, "mx.test", 1),
                (59, "mx.test", 0),
                (61, "mx.test", 1),
                (100, "long.test", 1),
                (100 + LONGEST_TTL - 1, "long.test", 0),
                (100 + LONGEST_TTL + 1, "long.test", 1),
                (9000, "zero.test", 1),
                (9000, "zero.test", 1),
                (9000, "gone.test", 1),
                (9059, "gone.test", 0),
                (9061, "gone.test", 1),
            ]:
                clock.now = at
                await resolver.ipv4_addresses(name)
                asked += new_questions
                assert liar.queries == asked, (at, name)
            liar.behaviour = lambda query: [answer(query, code=dns.rcode.SERVFAIL)]
            assert isinstance(await resolver.ipv4_addresses("fails.test"), LookupFailed)
            liar.behaviour = Zone("fails.test. 60 IN A 192.0.2.4")
            assert isinstance(await resolver.ipv4_addresses("fails.test"), Answer)

    asyncio.run(run())


def test_the_cache_is_bounded_and_drops_what_was_not_used_for_longest() -> None:
    zone = Zone(*(f"n{number}.test. 60 IN A 192.0.2.{number}" for number in range(4)))

    async def run() -> int:
        async with lying_server(zone) as liar:
            resolver = Resolver([liar.server], timeout=20, cache_entries=2)
            for number in (0, 1, 0, 2, 0, 1):  # 2 pushes out 1, which is asked again
                await resolver.ipv4_addresses(f"n{number}.test")
            return liar.queries

    assert asyncio.run(run()) == 4


def test_system_servers_are_those_of_resolv_conf(tmp_path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# x\nsearch test\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver\noptions edns0\n")
    assert system_servers(path) == (Server("192.0.2.53"), Server("fe80::1%eth0"))
    assert system_servers(tmp_path / "none") == (Server("127.0.0.1"),)


def test_a_change_of_resolv_conf_is_noticed(tmp_path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("nameserver 127.0.0.254\n")
    clock = Clock()

    async def run() -> list[str]:
        resolver = Resolver(timeout=0.05, clock=clock, resolv_conf=path)
        words = []
        for at, server in [(0, "127.0.0.253"), (10, "127.0.0.252"), (60, "")]:
            clock.now = at
            found = await resolver.ipv4_addresses("mx.test")
            assert isinstance(found, LookupFailed)
            words.append(found.words)
            path.write_text(f"nameserver {server}\n")
        return words

    first, second, third = asyncio.run(run())
    assert "127.0.0.254" in first
    assert "127.0.0.254" in second
    assert "127.0.0.252" in third


@pytest.mark.parametrize("name", ["a", "a.b", "_dmarc.a.test", "xn--bcher-kva.test", "a-b.c1", "x" * 63 + ".test"])
def test_names_as_the_world_has_them_are_host_names(name: str) -> None:
    assert is_host_name(name)


@pytest.mark.parametrize("name", ["a-", "-a", "a_.-b", "a.\n", "a\n", "[1]", "a@b", "*", "a/b"])
def test_other_text_is_no_host_name(name: str) -> None:
    assert not is_host_name(name)
