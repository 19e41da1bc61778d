"""The SMTP transport against next hops that refuse, lie, hang and vanish, at every stage."""

import asyncio
import socket
from pathlib import Path

import pytest

from posthouse.mail.message import ContentFile
from posthouse.mail.outcome import Deferred, Failed, Outcome, Relayed
from posthouse.net.client import CHUNK_OCTETS, ClientChannel, ClientTimeouts, Endpoint
from posthouse.smtp.event import Verb
from posthouse.transports.api import Attempt, Closed, Unavailable
from posthouse.transports.smtp import SmtpSettings, SmtpTransport
from transport_cases import TRACE, Heard, ListFeed, ScriptedServer, attempt

QUICK = ClientTimeouts(connect=3, tls=3, greeting=3, command=3, mail=3, rcpt=3, data=3, content_end=3, quit=0.3)
HASTY = ClientTimeouts(
    connect=0.15, tls=0.15, greeting=0.15, command=0.15, mail=0.15, rcpt=0.15, data=0.15, content_block=0.15,
    content_end=0.15, quit=0.15,
)  # fmt: skip
PIPELINING = ("PIPELINING", "8BITMIME")
STEP_BY_STEP = ("8BITMIME",)
both_ways = pytest.mark.parametrize("offers", [PIPELINING, STEP_BY_STEP], ids=["pipelined", "step-by-step"])


def endpoint(port: int, address: str = "127.0.0.1") -> Endpoint:
    return Endpoint("mx.example.net", address, port)


def deliver(
    server: ScriptedServer, *attempts: Attempt, feed: ListFeed | None = None, **changes: object
) -> tuple[Closed | Unavailable, list[list[Outcome]]]:
    feed = feed or ListFeed(*attempts)

    async def run() -> Closed | Unavailable:
        async with server.running():
            given = {"endpoints": (endpoint(server.port),), "idle_seconds": 0.02, "timeouts": QUICK, **changes}
            settings = SmtpSettings(hello_name="out.example.org", **given)  # type: ignore[arg-type]
            return await asyncio.wait_for(SmtpTransport(settings).run(feed), 10)

    end = asyncio.run(run())
    feed.assert_all_reported()
    return end, [feed.of(each) for each in attempts if each in feed.taken]


async def reset(heard: Heard, _line: str) -> None:
    heard.reset()


async def hang_up(heard: Heard, _line: str) -> None:
    heard.writer.close()


async def hang(heard: Heard, _line: str) -> None:
    await heard.reader.read()


async def garbage(heard: Heard, _line: str) -> None:
    heard.writer.write(b"GET / HTTP/1.1\r\n")


async def two_greetings(heard: Heard, _line: str) -> None:
    await heard.say("220 mx", "250 injected")


async def endless_reply(heard: Heard, _line: str) -> None:
    try:
        for _ in range(10_000):
            await heard.say("250-and so on")
    except ConnectionError:
        pass


# --- before any transaction: nothing is taken, and it is said why


@pytest.mark.parametrize(
    ("answers", "slug", "status", "is_permanent"),
    [
        ({"GREETING": "421 4.3.2 busy"}, "next-hop-deferred", "4.3.2", False),
        ({"GREETING": "450 4.7.1 later"}, "next-hop-deferred", "4.7.1", False),
        ({"GREETING": "554 no service here"}, "next-hop-refused", "5.3.2", True),
        ({"GREETING": "220 mx", "EHLO": "421 4.3.2 busy"}, "next-hop-deferred", "4.3.2", False),
        ({"EHLO": "550 no", "HELO": "550 5.7.1 not you"}, "next-hop-refused", "5.7.1", True),
        ({"GREETING": reset}, "next-hop-lost", "4.4.2", False),
        ({"GREETING": hang_up}, "next-hop-lost", "4.4.2", False),
        ({"EHLO": hang_up}, "next-hop-lost", "4.4.2", False),
        ({"GREETING": garbage}, "next-hop-broken", "4.5.0", False),
        ({"EHLO": endless_reply}, "next-hop-broken", "4.5.0", False),
        ({"GREETING": two_greetings}, "next-hop-broken", "4.5.0", False),
    ],
)
def test_a_next_hop_that_gives_no_session_is_unavailable(
    answers: dict[str, object], slug: str, status: str, is_permanent: bool
) -> None:
    feed = ListFeed(attempt())
    end, _ = deliver(ScriptedServer(**answers), feed=feed)  # type: ignore[arg-type]
    assert isinstance(end, Unavailable)
    assert (end.reason.slug, end.status, end.is_permanent) == (slug, status, is_permanent)
    assert "mx.example.net [127.0.0.1]" in end.reason.words
    assert feed.taken == []


@pytest.mark.parametrize("stage", ["GREETING", "EHLO"])
def test_a_next_hop_that_says_nothing_is_left_in_time(stage: str) -> None:
    end, _ = deliver(ScriptedServer(**{stage: hang}), feed=ListFeed(attempt()), timeouts=HASTY)
    assert isinstance(end, Unavailable)
    assert end.reason.slug == "next-hop-timeout"


def test_nobody_there_is_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        settings = SmtpSettings((endpoint(unused.getsockname()[1]),), "out.example.org", timeouts=QUICK)
        end = asyncio.run(SmtpTransport(settings).run(ListFeed(attempt())))
    assert isinstance(end, Unavailable)
    assert (end.reason.slug, end.status) == ("next-hop-unreachable", "4.4.1")
    assert "connection refused" in end.reason.words


@pytest.mark.parametrize("greeting", ["421 busy", "554 no", reset])
def test_the_next_address_is_tried(greeting: object) -> None:
    async def run() -> tuple[Closed | Unavailable, ListFeed]:
        feed = ListFeed(attempt())
        bad, good = ScriptedServer(GREETING=greeting), ScriptedServer()  # type: ignore[arg-type]
        async with bad.running(), good.running():
            endpoints = (endpoint(1, "127.0.0.1"), endpoint(bad.port), endpoint(good.port))
            settings = SmtpSettings(endpoints, "out.example.org", timeouts=QUICK, idle_seconds=0.01)
            end = await asyncio.wait_for(SmtpTransport(settings).run(feed), 10)
            assert len(good.contents) == 1
        return end, feed

    end, feed = asyncio.run(run())
    assert isinstance(end, Closed)
    feed.assert_all_reported()


def test_one_transient_trouble_makes_the_whole_transient() -> None:
    async def run() -> Closed | Unavailable:
        one, other = ScriptedServer(GREETING="421 busy"), ScriptedServer(GREETING="554 no")
        async with one.running(), other.running():
            settings = SmtpSettings((endpoint(one.port), endpoint(other.port)), "out.example.org", timeouts=QUICK)
            return await SmtpTransport(settings).run(ListFeed(attempt()))

    end = asyncio.run(run())
    assert isinstance(end, Unavailable)
    assert not end.is_permanent


def test_a_source_address_is_used_and_its_family_decides_which_next_hops() -> None:
    peers: list[str] = []

    async def note(heard: Heard, _line: str) -> None:
        peers.append(heard.writer.get_extra_info("peername")[0])
        await heard.say("220 mx")

    end, _ = deliver(ScriptedServer(GREETING=note), attempt(), source_address="127.0.0.9")
    assert end == Closed(1)
    assert peers == ["127.0.0.9"]
    settings = SmtpSettings((endpoint(25, "127.0.0.1"),), "out.example.org", source_address="::1")
    end = asyncio.run(SmtpTransport(settings).run(ListFeed(attempt())))
    assert isinstance(end, Unavailable)
    assert end.reason.slug == "no-address"


# --- refusals, recipient by recipient


@both_ways
@pytest.mark.parametrize(
    ("answers", "kinds", "statuses"),
    [
        ({"MAIL": "550 5.7.1 not from you"}, [Failed] * 3, ["5.7.1"] * 3),
        ({"MAIL": "451 4.7.1 later"}, [Deferred] * 3, ["4.7.1"] * 3),
        ({"MAIL": "552 too big"}, [Failed] * 3, ["5.3.4"] * 3),
        ({"RCPT": ["250 Ok", "550 5.1.1 no", "450 busy"]}, [Relayed, Failed, Deferred], ["2.0.0", "5.1.1", "4.2.0"]),
        ({"RCPT": "550 no"}, [Failed] * 3, ["5.1.0"] * 3),
        ({"RCPT": ["451 greylisted", "550 5.1.1 no", "550 5.1.1 no"]}, [Deferred, Failed, Failed], ["4.3.0", "5.1.1", "5.1.1"]),
        ({"DATA": "451 4.3.0 later"}, [Deferred] * 3, ["4.3.0"] * 3),
        ({"DATA": "554 no valid recipients"}, [Failed] * 3, ["5.5.1"] * 3),
        ({"RCPT": ["550 5.1.1 no", "250 Ok", "250 Ok"], "DATA": "452 4.3.1 full"}, [Failed, Deferred, Deferred], ["5.1.1", "4.3.1", "4.3.1"]),  # noqa: E501
        ({"CONTENT": "554 5.6.0 spam"}, [Failed] * 3, ["5.6.0"] * 3),
        ({"CONTENT": "451 4.7.1 later"}, [Deferred] * 3, ["4.7.1"] * 3),
        ({"CONTENT": "554 4.7.1 lies about its class"}, [Failed] * 3, ["5.0.0"] * 3),
    ],
)  # fmt: skip
def test_each_recipient_gets_the_outcome_its_reply_says(
    offers: tuple[str, ...], answers: dict[str, object], kinds: list[type[Outcome]], statuses: list[str]
) -> None:
    refused = attempt("a@example.net", "b@example.net", "c@example.net")
    answers = {verb: [*answer, "250 Ok"] if isinstance(answer, list) else answer for verb, answer in answers.items()}
    for verb in ("MAIL", "DATA", "CONTENT"):
        if isinstance(answers.get(verb), str):
            answers[verb] = [answers[verb], "354 Go" if verb == "DATA" else "250 Ok"]
    if answers.get("RCPT") == "550 no":
        answers["RCPT"] = ["550 no"] * 3 + ["250 Ok"]
    server = ScriptedServer(offers, **answers)  # type: ignore[arg-type]
    end, outcomes = deliver(server, refused, after := attempt())
    assert end == Closed(2)
    assert [type(outcome) for outcome in outcomes[0]] == kinds
    assert [outcome.status for outcome in outcomes[0]] == statuses
    assert all(outcome.diagnostic in outcome.reason.words for outcome in outcomes[0])
    assert isinstance(outcomes[1][0], Relayed), "the next message on the same connection is not hurt"
    assert len(server.connections) == 1
    assert after


def test_354_though_no_recipient_was_taken_gets_a_lone_dot() -> None:
    server = ScriptedServer(RCPT=["550 5.1.1 no", "250 Ok"], CONTENT=["554 no recipients", "250 Ok"])
    end, outcomes = deliver(server, attempt(), attempt(body=b"second\r\n"))
    assert end == Closed(2)
    assert [type(outcomes[0][0]), type(outcomes[1][0])] == [Failed, Relayed]
    assert server.contents == [b".\r\n", TRACE + b"second\r\n.\r\n"]


def test_a_refusal_in_a_prefetched_transaction_hurts_only_its_message() -> None:
    server = ScriptedServer(MAIL=["250 Ok", "550 5.1.0 no", "250 Ok"], DATA=["354 Go", "503 no MAIL", "354 Go"])
    end, outcomes = deliver(server, attempt(), attempt("x@example.net"), attempt())
    assert end == Closed(3)
    assert [type(each[0]) for each in outcomes] == [Relayed, Failed, Relayed]
    assert outcomes[1][0].diagnostic == "550 5.1.0 no"


@both_ways
def test_a_transaction_left_open_is_reset_before_the_next(offers: tuple[str, ...]) -> None:
    server = ScriptedServer(offers, RCPT=["550 5.1.1 no", "250 Ok"], DATA=["503 no recipients", "354 Go"])
    if offers == STEP_BY_STEP:
        server.answers["DATA"] = "354 Go"
    deliver(server, attempt(), attempt())
    verbs = [line.partition(" ")[0] for line in server.lines]
    assert verbs.index("RSET") < len(verbs) - verbs[::-1].index("MAIL") - 1


@both_ways
def test_too_many_recipients_go_in_several_transactions(offers: tuple[str, ...]) -> None:
    many = attempt(*(f"u{i}@example.net" for i in range(7)))
    server = ScriptedServer((*offers, "LIMITS RCPTMAX=3"))
    end, (outcomes,) = deliver(server, many)
    assert isinstance(end, Closed)
    assert all(isinstance(outcome, Relayed) for outcome in outcomes)
    assert len(outcomes) == 7
    assert len(server.contents) == 3
    assert len(server.connections) == 1


@both_ways
def test_452_at_rcpt_sends_the_rest_in_another_transaction(offers: tuple[str, ...]) -> None:
    server = ScriptedServer(offers, RCPT=["250 Ok", "452 4.5.3 enough", "452 4.5.3 enough", "250 Ok"])
    end, (outcomes,) = deliver(server, attempt("a@example.net", "b@example.net", "c@example.net"))
    assert isinstance(end, Closed)
    assert all(isinstance(outcome, Relayed) for outcome in outcomes)
    assert [line for line in server.lines if "RCPT" in line][3:] == [
        "RCPT TO:<b@example.net>",
        "RCPT TO:<c@example.net>",
    ]


def test_452_for_the_first_recipient_is_a_deferral() -> None:
    end, (outcomes,) = deliver(ScriptedServer(RCPT="452 4.5.3 enough"), attempt())
    assert isinstance(end, Closed)
    assert isinstance(outcomes[0], Deferred)


def test_mailmax_opens_another_connection() -> None:
    server = ScriptedServer((*PIPELINING, "LIMITS MAILMAX=2"))
    end, outcomes = deliver(server, *(attempt() for _ in range(5)))
    assert end == Closed(5)
    assert all(isinstance(outcome, Relayed) for (outcome,) in outcomes)
    assert [len(connection.contents) for connection in server.connections] == [2, 2, 1]


# --- losses


@both_ways
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "CONTENT"])
@pytest.mark.parametrize(
    ("trouble", "slug", "status"),
    [
        (reset, "next-hop-lost", "4.4.2"),
        (hang_up, "next-hop-lost", "4.4.2"),
        (garbage, "next-hop-broken", "4.5.0"),
        ("421 4.3.2 closing", "next-hop-deferred", "4.3.2"),
    ],
    ids=["reset", "hang-up", "garbage", "421"],
)
def test_a_loss_defers_what_was_under_way(
    offers: tuple[str, ...], stage: str, trouble: object, slug: str, status: str
) -> None:
    end, outcomes = deliver(ScriptedServer(offers, **{stage: trouble}), attempt("a@example.net", "b@example.net"))  # type: ignore[arg-type]
    assert len(outcomes) == 1
    assert [type(outcome) for outcome in outcomes[0]] == [Deferred] * 2
    assert {outcome.reason.slug for outcome in outcomes[0]} == {slug}
    assert {outcome.status for outcome in outcomes[0]} == {status}
    if trouble == "421 4.3.2 closing":
        assert isinstance(end, Unavailable)
        assert outcomes[0][0].diagnostic == "421 4.3.2 closing"
    elif stage == "CONTENT":
        assert "may arrive twice" in outcomes[0][0].reason.words


@both_ways
@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA", "CONTENT"])
def test_silence_defers_what_was_under_way(offers: tuple[str, ...], stage: str) -> None:
    _, outcomes = deliver(ScriptedServer(offers, **{stage: hang}), attempt(), timeouts=HASTY)
    (outcome,) = outcomes[0]
    assert isinstance(outcome, Deferred)
    assert outcome.reason.slug == "next-hop-timeout"
    assert outcome.status == "4.4.2"


def test_a_message_that_breaks_connections_does_not_hold_up_the_others() -> None:
    server = ScriptedServer(CONTENT=[reset, "250 Ok", "250 Ok"])
    end, outcomes = deliver(server, attempt(), attempt(), attempt())
    assert isinstance(end, Closed)
    kinds = [type(each[0]) for each in outcomes]
    assert kinds.count(Relayed) >= 1
    assert kinds[0] is Deferred


def test_a_next_hop_that_breaks_every_connection_is_unavailable() -> None:
    server = ScriptedServer(MAIL=reset)
    feed = ListFeed(*(attempt() for _ in range(10)))
    end, _ = deliver(server, feed=feed)
    assert isinstance(end, Unavailable)
    assert len(server.connections) == 2
    assert len(feed.taken) == 2


@pytest.mark.parametrize("farewell", ["421 4.7.0 enough for one session", reset, hang_up])
def test_what_was_not_begun_goes_over_a_new_connection(farewell: object) -> None:
    server = ScriptedServer(MAIL=["250 Ok", farewell, "250 Ok"])  # type: ignore[list-item]
    end, outcomes = deliver(server, attempt(), attempt(), attempt())
    assert end == Closed(3)
    assert [type(each[0]) for each in outcomes] == [Relayed] * 3
    assert len(server.connections) == 2


def test_it_is_carried_once_and_then_deferred() -> None:
    server = ScriptedServer(MAIL=["250 Ok", hang_up, hang_up, "250 Ok"])
    _, outcomes = deliver(server, attempt(), attempt())
    assert [type(each[0]) for each in outcomes] == [Relayed, Deferred]


def test_a_carried_message_is_deferred_when_no_connection_can_be_had() -> None:
    server = ScriptedServer(MAIL=["250 Ok", hang_up], GREETING=["220 mx", "421 4.3.2 busy"])
    end, outcomes = deliver(server, attempt(), attempt())
    assert isinstance(end, Unavailable)
    assert [type(each[0]) for each in outcomes] == [Relayed, Deferred]
    assert outcomes[1][0].status == "4.3.2"


def test_a_connection_that_died_while_idle_is_opened_again() -> None:
    async def run() -> tuple[Closed | Unavailable, int]:
        async def say_and_close(heard: Heard, _line: str) -> None:
            await heard.say("250 Ok")
            await heard.say("421 4.4.2 idle too long")
            heard.writer.close()

        server = ScriptedServer(CONTENT=[say_and_close, "250 Ok"])
        feed = ListFeed(attempt())
        async with server.running():
            settings = SmtpSettings((endpoint(server.port),), "out.example.org", idle_seconds=0.5, timeouts=QUICK)
            task = asyncio.create_task(SmtpTransport(settings).run(feed))
            await feed.is_idle.wait()
            await asyncio.sleep(0.05)
            feed.add(attempt())
            end = await asyncio.wait_for(task, 10)
        feed.assert_all_reported()
        assert all(isinstance(feed.of(each)[0], Relayed) for each in feed.taken)
        return end, len(server.connections)

    end, connections = asyncio.run(run())
    assert end == Closed(2)
    assert connections == 2


def test_cancelling_ends_at_once() -> None:
    async def run() -> None:
        server = ScriptedServer(CONTENT=hang)
        feed = ListFeed(attempt())
        async with server.running():
            settings = SmtpSettings((endpoint(server.port),), "out.example.org")
            task = asyncio.create_task(SmtpTransport(settings).run(feed))
            while not server.contents:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 30)
            assert feed.outcomes == {}

    asyncio.run(run())


# --- what the next hop cannot carry


def test_8_bit_content_is_not_sent_to_a_hop_without_8bitmime() -> None:
    server = ScriptedServer(("PIPELINING",))
    _, outcomes = deliver(server, attempt(body="h\u00e9\r\n".encode(), is_8bit=True), attempt())
    assert isinstance(outcomes[0][0], Failed)
    assert (outcomes[0][0].status, outcomes[0][0].reason.slug) == ("5.6.3", "needs-8bitmime")
    assert isinstance(outcomes[1][0], Relayed)
    assert len(server.contents) == 1


def test_an_internationalised_address_needs_smtputf8() -> None:
    server = ScriptedServer()
    _, outcomes = deliver(
        server,
        attempt("us\u00e9r@example.net", "user@example.net", smtputf8=True),
        attempt(reverse_path="s\u00e9nder@example.org", smtputf8=True),
        attempt(body="Subject: h\u00e9\r\n\r\n\r\n".encode(), is_8bit=True, smtputf8=True),
        attempt(body="Subject: hi\r\n\r\n\u00e9\r\n".encode(), is_8bit=True, smtputf8=True),
    )
    assert [type(each[0]) for each in outcomes] == [Failed, Failed, Failed, Relayed]
    assert isinstance(outcomes[0][1], Relayed), "the other recipient needs no SMTPUTF8"
    assert all(each[0].status == "5.6.7" for each in outcomes[:3])


def test_extensions_are_used_where_they_are_offered() -> None:
    server = ScriptedServer((*PIPELINING, "SMTPUTF8", "DSN", "SIZE 1000"))
    _, outcomes = deliver(
        server,
        attempt("us\u00e9r@example.net", smtputf8=True, is_8bit=True, envelope_id="id+1"),
        attempt(body=b"x" * 1001),
    )
    (outcome,) = outcomes[0]
    assert isinstance(outcome, Relayed)
    assert outcome.speaks_dsn
    assert isinstance(outcomes[1][0], Failed)
    assert outcomes[1][0].status == "5.3.4"
    size = len(TRACE) + len(b"Subject: hello\r\n\r\nHello.\r\n")
    assert server.lines[1] == f"MAIL FROM:<sender@example.org> SIZE={size} BODY=8BITMIME SMTPUTF8 ENVID=id+2B1"
    assert server.lines[2] == "RCPT TO:<us\u00e9r@example.net>"


def test_an_envelope_that_cannot_be_said_fails_alone() -> None:
    server = ScriptedServer()
    end, outcomes = deliver(server, attempt("a@b> SIZE=1"), attempt())
    assert isinstance(end, Closed)
    assert [type(each[0]) for each in outcomes] == [Failed, Relayed]
    assert outcomes[0][0].reason.slug == "address-unusable"


# --- LMTP


def lmtp_server(**answers: object) -> ScriptedServer:
    return ScriptedServer(EHLO="500 this is LMTP", HELO="500 this is LMTP", **answers)  # type: ignore[arg-type]


def test_lmtp_answers_recipient_by_recipient() -> None:
    async def each(heard: Heard, _line: str) -> None:
        await heard.say("250 2.0.0 a has it", "452 4.2.2 b is full", "550 5.7.1 c does not want it")

    end, (outcomes,) = deliver(
        lmtp_server(CONTENT=each), attempt("a@example.net", "b@example.net", "c@example.net"), dialect=Verb.LHLO
    )
    assert end == Closed(1)
    assert [type(outcome).__name__ for outcome in outcomes] == ["Delivered", "Deferred", "Failed"]
    assert [outcome.status for outcome in outcomes] == ["2.0.0", "4.2.2", "5.7.1"]


def test_lmtp_lost_between_two_replies_defers_only_the_rest() -> None:
    async def half(heard: Heard, _line: str) -> None:
        await heard.say("250 2.0.0 a has it")
        heard.writer.close()

    _, (outcomes,) = deliver(lmtp_server(CONTENT=half), attempt("a@example.net", "b@example.net"), dialect=Verb.LHLO)
    assert [type(outcome).__name__ for outcome in outcomes] == ["Delivered", "Deferred"]


def test_lmtp_over_a_unix_socket(tmp_path: Path) -> None:
    async def run() -> ListFeed:
        server = lmtp_server()
        listening = await asyncio.start_unix_server(server._serve, tmp_path / "lmtp")
        feed = ListFeed(attempt())
        settings = SmtpSettings(
            (Endpoint("localhost", socket_path=str(tmp_path / "lmtp")),),
            "out.example.org",
            Verb.LHLO,
            idle_seconds=0.01,
        )
        assert await SmtpTransport(settings).run(feed) == Closed(1)
        listening.close()
        return feed

    feed = asyncio.run(run())
    (outcome,) = feed.of(feed.order[0])
    assert type(outcome).__name__ == "Delivered"
    assert outcome.remote == str(tmp_path / "lmtp")


# --- large contents


@both_ways
def test_a_large_content_streams_from_its_file(tmp_path: Path, offers: tuple[str, ...]) -> None:
    body = b"0123456789abcd\r\n" * 100_000
    (tmp_path / "content").write_bytes(b"before" + body + b"after")
    server = ScriptedServer(offers)
    large = attempt(file=ContentFile(str(tmp_path / "content"), 6, len(body)))
    end, outcomes = deliver(server, large, attempt())
    assert end == Closed(2)
    assert all(isinstance(each[0], Relayed) for each in outcomes)
    assert server.contents[0] == TRACE + body + b".\r\n"


def test_a_large_content_is_sent_no_faster_than_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 30_000_000
    with (tmp_path / "content").open("wb") as file:
        file.truncate(size)
    waiting: list[int] = []
    write = ClientChannel._write

    def watch(channel: ClientChannel, pieces: list[bytes]) -> None:
        write(channel, pieces)
        waiting.append(channel._transport.get_write_buffer_size())

    monkeypatch.setattr(ClientChannel, "_write", watch)

    async def slow(heard: Heard, _line: str) -> None:
        await heard.say("354 Go")
        seen = 0
        while seen < len(TRACE) + size + len(b"\r\n.\r\n"):
            seen += len(await heard.reader.read(1 << 20))
            await asyncio.sleep(0)
        await heard.say("250 2.0.0 Ok")

    large = attempt(file=ContentFile(str(tmp_path / "content"), 0, size))
    _, outcomes = deliver(ScriptedServer(DATA=slow), large)
    assert isinstance(outcomes[0][0], Relayed)
    assert max(waiting) <= 2 * CHUNK_OCTETS


def test_a_refusal_in_the_middle_of_a_large_content_counts(tmp_path: Path) -> None:
    with (tmp_path / "content").open("wb") as file:
        file.truncate(60_000_000)

    async def refuse(heard: Heard, _line: str) -> None:
        await heard.say("354 Go")
        await heard.reader.read(100_000)
        await heard.say("552 5.3.4 Too much for me")
        while await heard.reader.read(1 << 20):
            pass

    large = attempt(file=ContentFile(str(tmp_path / "content"), 0, 60_000_000))
    _, outcomes = deliver(ScriptedServer(DATA=refuse), large)
    (outcome,) = outcomes[0]
    assert isinstance(outcome, Failed)
    assert outcome.status == "5.3.4"


def test_a_next_hop_that_does_not_take_the_content_is_left(tmp_path: Path) -> None:
    with (tmp_path / "content").open("wb") as file:
        file.truncate(60_000_000)

    async def stall(heard: Heard, _line: str) -> None:
        await heard.say("354 Go")
        await asyncio.sleep(2)

    large = attempt(file=ContentFile(str(tmp_path / "content"), 0, 60_000_000))
    _, outcomes = deliver(ScriptedServer(DATA=stall), large, timeouts=HASTY)
    (outcome,) = outcomes[0]
    assert isinstance(outcome, Deferred)
    assert outcome.reason.slug == "next-hop-timeout"
    assert "did not take the content" in outcome.reason.words


def test_a_content_that_cannot_be_read_is_deferred_and_never_sent_in_part(tmp_path: Path) -> None:
    (tmp_path / "content").write_bytes(b"x" * 1000)
    server = ScriptedServer()
    end, outcomes = deliver(
        server,
        attempt(file=ContentFile(str(tmp_path / "content"), 0, 2000)),
        attempt(file=ContentFile(str(tmp_path / "missing"), 0, 2000)),
        attempt(),
    )
    assert isinstance(end, Unavailable | Closed)
    assert [outcome.reason.slug for each in outcomes[:2] for outcome in each] == ["content-damaged"] * 2
    assert all(content.endswith(b"Hello.\r\n.\r\n") for content in server.contents)


def test_a_rambling_reply_is_cut_where_it_is_kept() -> None:
    async def ramble(heard: Heard, _line: str) -> None:
        await heard.say(*(["550-5.7.1 " + "x" * 2000] * 200), "550 5.7.1 end")

    _, outcomes = deliver(ScriptedServer(CONTENT=ramble), attempt())
    (outcome,) = outcomes[0]
    assert isinstance(outcome, Failed)
    assert outcome.status == "5.7.1"
    assert len(outcome.diagnostic) == 1000
    assert len(outcome.reason.words) < 1200


def test_a_next_hop_is_reached_over_ipv6() -> None:
    async def run() -> tuple[Closed | Unavailable, ListFeed]:
        server = ScriptedServer()
        listening = await asyncio.start_server(server._serve, "::1", 0)
        port = listening.sockets[0].getsockname()[1]
        feed = ListFeed(attempt())
        settings = SmtpSettings((endpoint(port, "::1"),), "out.example.org", source_address="::1", idle_seconds=0.01)
        end = await asyncio.wait_for(SmtpTransport(settings).run(feed), 10)
        listening.close()
        await listening.wait_closed()
        return end, feed

    end, feed = asyncio.run(run())
    assert end == Closed(1)
    assert "[::1]" in feed.of(feed.order[0])[0].remote


def test_an_attempt_for_nobody_is_reported_too() -> None:
    nobody = attempt()
    nobody = Attempt(nobody.envelope, nobody.message, (), nobody.reverse_path)
    server = ScriptedServer()
    end, outcomes = deliver(server, nobody, attempt())
    assert end == Closed(1)
    assert outcomes[0] == []
    assert len(server.contents) == 1
