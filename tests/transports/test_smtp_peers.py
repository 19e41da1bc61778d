"""The SMTP and LMTP transport against Postfix, Exim and Dovecot: pipelined, with refusals in between, large, 8-bit."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from peer_servers import NextHop, dovecot_lmtp, exim_next_hop, postfix_next_hop
from posthouse.mail.message import ContentFile
from posthouse.mail.outcome import Outcome, Relayed
from posthouse.net.client import Endpoint
from posthouse.smtp.event import DotForm, Notify, Ret, Verb
from posthouse.transports.api import Attempt, Closed
from posthouse.transports.smtp import SmtpSettings, SmtpTransport
from transport_cases import ListFeed, attempt, recipient

pytestmark = [pytest.mark.peer, pytest.mark.slow]

REFUSED = {"refused@x.test": "550 5.1.1 no such user", "later@x.test": "450 4.2.1 mailbox busy"}


def deliver(endpoint: Endpoint, *attempts: Attempt, dialect: Verb = Verb.EHLO) -> list[list[Outcome]]:
    feed = ListFeed(*attempts)
    settings = SmtpSettings((endpoint,), "out.example.org", dialect, idle_seconds=0.05)
    end = asyncio.run(asyncio.wait_for(SmtpTransport(settings).run(feed), 60))
    assert isinstance(end, Closed)
    feed.assert_all_reported()
    return [feed.of(each) for each in attempts]


def names(outcomes: list[list[Outcome]]) -> list[list[str]]:
    return [[f"{type(outcome).__name__} {outcome.status}" for outcome in each] for each in outcomes]


@pytest.mark.parametrize("next_hop", [postfix_next_hop, exim_next_hop])
def test_every_recipient_has_its_own_fate_and_no_message_hurts_the_next(
    next_hop: Callable[..., AbstractContextManager[NextHop]], tmp_path: Path
) -> None:
    large = b"Subject: large\r\n\r\n" + b"0123456789abcd\r\n" * 100_000
    (tmp_path / "content").write_bytes(large)
    with next_hop(["x.test"], answers=REFUSED) as server:
        outcomes = deliver(
            Endpoint("mx.x.test", server.address, server.port),
            attempt("a@x.test", body=b"Subject: one\r\n\r\n..dot\r\n", dots=DotForm.STUFFED),
            attempt("refused@x.test"),
            attempt(
                "b@x.test", "refused@x.test", "later@x.test", body=b"Subject: two\r\n\r\n.dot\r\n", dots=DotForm.PLAIN
            ),
            attempt("later@x.test"),
            attempt("c@x.test", file=ContentFile(str(tmp_path / "content"), 0, len(large))),
            attempt("d@x.test", body="Subject: 8bit\r\n\r\n\u00e9\r\n".encode(), is_8bit=True, reverse_path=""),
            attempt(recipient("e@x.test", Notify.NEVER, "rfc822;old@x.test"), ret=Ret.HEADERS, envelope_id="id 1"),
        )
        arrived = {each.forward_path: each for each in server.wait_for(5)}
    kinds = names(outcomes)
    assert [[name.partition(" ")[0] for name in each] for each in kinds] == [
        ["Relayed"], ["Failed"], ["Relayed", "Failed", "Deferred"], ["Deferred"], ["Relayed"], ["Relayed"], ["Relayed"],
    ]  # fmt: skip
    assert kinds[1] == ["Failed 5.1.1"]
    assert kinds[3] == ["Deferred 4.2.1"]
    assert arrived["a@x.test"].octets.endswith(b"\n\n.dot\n")
    assert arrived["b@x.test"].octets.endswith(b"\n\n.dot\n")
    assert arrived["c@x.test"].octets.endswith(b"0123456789abcd\n" * 100_000)
    assert arrived["d@x.test"].octets.endswith("\n\n\u00e9\n".encode())
    assert arrived["d@x.test"].reverse_path == ""
    (relayed,) = outcomes[6]
    assert isinstance(relayed, Relayed)
    if next_hop is postfix_next_hop:
        assert relayed.speaks_dsn


def test_many_messages_share_a_connection_with_postfix() -> None:
    with postfix_next_hop(["x.test"]) as server:
        count = 150
        outcomes = deliver(
            Endpoint("mx.x.test", server.address, server.port), *(attempt(f"u{i}@x.test") for i in range(count))
        )
        assert len(server.wait_for(count)) == count
    assert all(isinstance(outcome, Relayed) for (outcome,) in outcomes)


@pytest.mark.parametrize("by_socket", [True, False])
def test_dovecot_answers_recipient_by_recipient(by_socket: bool) -> None:
    with dovecot_lmtp(["a", "b"], full=["full"]) as server:
        endpoint = Endpoint("localhost", server.address, server.port)
        if by_socket:
            endpoint = Endpoint("localhost", socket_path=str(server.socket))
        outcomes = deliver(
            endpoint,
            attempt("a@x.test", "full@x.test", "nobody@x.test", "b@x.test"),
            attempt("nobody@x.test"),
            attempt("b@x.test"),
            dialect=Verb.LHLO,
        )
        arrived = server.wait_for(3)
    kinds = [[type(outcome).__name__ for outcome in each] for each in outcomes]
    assert kinds == [["Delivered", "Deferred", "Failed", "Delivered"], ["Failed"], ["Delivered"]]
    assert len(arrived) == 3
