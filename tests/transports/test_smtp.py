"""The SMTP transport against scripted servers: what is said, and what each answer means."""

import asyncio

import pytest

from posthouse.mail.outcome import Relayed
from posthouse.net.client import ClientTimeouts, Endpoint
from posthouse.transports.api import Closed, Unavailable
from posthouse.transports.smtp import SmtpSettings, SmtpTransport
from transport_cases import TRACE, ListFeed, ScriptedServer, attempt

QUICK = ClientTimeouts(connect=2, tls=2, greeting=2, command=2, mail=2, rcpt=2, data=2, content_end=2, quit=0.5)
PIPELINING = ("PIPELINING", "8BITMIME")
STEP_BY_STEP = ("8BITMIME",)


def settings(*ports: int, **changes: object) -> SmtpSettings:
    endpoints = tuple(Endpoint("mx.example.net", "127.0.0.1", port) for port in ports)
    return SmtpSettings(endpoints, "out.example.org", **{"idle_seconds": 0.05, "timeouts": QUICK, **changes})  # type: ignore[arg-type]


def deliver(server: ScriptedServer, feed: ListFeed, **changes: object) -> Closed | Unavailable:
    async def run() -> Closed | Unavailable:
        async with server.running():
            return await asyncio.wait_for(SmtpTransport(settings(server.port, **changes)).run(feed), 10)

    end = asyncio.run(run())
    feed.assert_all_reported()
    return end


@pytest.mark.parametrize("offers", [PIPELINING, STEP_BY_STEP])
def test_messages_go_over_one_connection_in_order(offers: tuple[str, ...]) -> None:
    server = ScriptedServer(offers)
    first, second, third = attempt(body=b"1\r\n"), attempt("a@example.net", "b@example.net", body=b"2\r\n"), attempt()
    feed = ListFeed(first, second, third)
    assert deliver(server, feed) == Closed(3)
    assert len(server.connections) == 1
    assert feed.order == [first, second, third]
    assert [len(feed.of(each)) for each in feed.order] == [1, 2, 1]
    assert all(isinstance(outcome, Relayed) for each in feed.order for outcome in feed.of(each))
    assert server.contents[:2] == [TRACE + b"1\r\n.\r\n", TRACE + b"2\r\n.\r\n"]
    assert server.lines == [
        "EHLO out.example.org",
        "MAIL FROM:<sender@example.org>",
        "RCPT TO:<user@example.net>",
        "DATA",
        "MAIL FROM:<sender@example.org>",
        "RCPT TO:<a@example.net>",
        "RCPT TO:<b@example.net>",
        "DATA",
        "MAIL FROM:<sender@example.org>",
        "RCPT TO:<user@example.net>",
        "DATA",
        "QUIT",
    ]


def test_an_outcome_says_who_took_it_and_what_was_said() -> None:
    server = ScriptedServer()
    feed = ListFeed(only := attempt())
    deliver(server, feed)
    (outcome,) = feed.of(only)
    assert isinstance(outcome, Relayed)
    assert outcome.status == "2.0.0"
    assert outcome.diagnostic == "250 2.0.0 Ok: queued as 12345"
    assert outcome.remote == f"mx.example.net [127.0.0.1]:{server.port}"
    assert outcome.reason.slug == "relayed"
    assert outcome.remote in outcome.reason.words
    assert not outcome.speaks_dsn
