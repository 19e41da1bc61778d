"""The real servers do by themselves what the other tests rely on."""

import asyncio
import smtplib
import socket

import pytest

from peer_programs import run_client, swaks
from peer_servers import dovecot_lmtp, exim_next_hop, knot, postfix_client, postfix_next_hop
from posthouse.dns.exchange import Server
from posthouse.dns.resolver import Answer, MailExchange, NoName, Resolver

pytestmark = pytest.mark.peer
ANSWERS = {"refused@d.test": "550 5.1.1 no such user", "later@d.test": "450 4.2.1 come again"}


@pytest.mark.parametrize("next_hop", [postfix_next_hop, exim_next_hop])
def test_a_next_hop_keeps_what_it_takes_and_refuses_what_it_is_told_to(next_hop) -> None:
    with next_hop(["d.test"], answers=ANSWERS) as server:
        swaks(
            "--server",
            server.address,
            "--port",
            str(server.port),
            "--from",
            "a@src.test",
            "--to",
            "user@d.test",
            "--header",
            "Subject: one",
        )
        with smtplib.SMTP(server.address, server.port) as client:
            client.ehlo("client.test")
            client.mail("a@src.test")
            assert client.rcpt("refused@d.test")[0] == 550
            assert client.rcpt("later@d.test")[0] in (450, 451)
            assert client.rcpt("user@elsewhere.test")[0] in (550, 554)
        (arrived,) = server.wait_for(1)
        assert (arrived.reverse_path, arrived.forward_path, arrived.message["Subject"]) == (
            "a@src.test",
            "user@d.test",
            "one",
        )


def test_postfix_as_a_client_relays_through_another() -> None:
    with postfix_next_hop(["d.test"]) as server, postfix_client(server.address, server.port) as client:
        client.send("a@src.test", ["user@d.test"], b"Subject: two\n\nhello\n")
        (arrived,) = server.wait_for(1)
        assert arrived.message["Subject"] == "two"


def test_dovecot_answers_for_each_recipient() -> None:
    with dovecot_lmtp(["one", "two"], full=["full"]) as server:
        recipients = "".join(f"RCPT TO:<{user}@d.test>\r\n" for user in ("one", "nobody", "full"))
        dialogue = f"LHLO client.test\r\nMAIL FROM:<a@src.test>\r\n{recipients}DATA\r\nSubject: three\r\n\r\nhello\r\n.\r\nQUIT\r\n"
        with (
            socket.create_connection((server.address, server.port), timeout=10) as client,
            client.makefile("rw", newline="") as lines,
        ):
            lines.write(dialogue)
            lines.flush()
            replies = [line[:3] for line in lines if line[3] == " "]
        assert replies == ["220", "250", "250", "250", "550", "250", "354", "250", "451", "221"]
        (arrived,) = server.wait_for(1)
        assert arrived.message["Subject"] == "three"
        assert server.socket.is_socket()


def test_knot_answers_from_its_zone() -> None:
    async def ask(server: Server) -> tuple[object, object]:
        resolver = Resolver([server])
        return await resolver.mail_exchanges("d.test"), await resolver.mail_exchanges("none.d.test")

    with knot({"d.test": "@ MX 10 mx"}) as server:
        found, none = asyncio.run(ask(Server(server.address, server.port)))
        assert isinstance(found, Answer)
        assert found.records == (MailExchange(10, "mx.d.test"),)
        assert isinstance(none, NoName)


@pytest.mark.parametrize(
    ("peer", "path", "option"),
    [("msmtp", "usr/bin/msmtp", "--version"), ("git-email", "usr/lib/git-core/git-send-email", "-h")],
)
def test_clients_start(peer: str, path: str, option: str) -> None:
    done = run_client(peer, path, option, check=False)
    assert b"msmtp" in done.stdout or b"send-email" in done.stdout + done.stderr
