"""Whether a stranger can relay through us: asked by a stranger, answered by what arrives at the next hop."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from peer_servers import postfix_next_hop
from posthouse_server import ADDRESS, STRANGER, Posthouse, posthouse, route_to

pytestmark = pytest.mark.peer
VICTIM = "victim@elsewhere.test"
EVERYTHING = {"virtual_mailbox_domains": "static:all", "allow_untrusted_routing": "yes"}
"""A next hop that takes and keeps whatever reaches it, for any domain."""

REFUSED = [
    "<victim@elsewhere.test>",
    "victim@elsewhere.test",
    "<VICTIM@ELSEWHERE.TEST>",
    "<victim@elsewhere.test.>",
    '<"victim"@elsewhere.test>',
    '<"victim@elsewhere.test">',
    '<"victim@elsewhere.test"@here.test>',
    '<"victim@elsewhere.test"@relay.test>',
    "<victim%elsewhere.test@here.test>",
    "<victim%elsewhere.test@dept.test>",
    "<victim%elsewhere.test@relay.test>",
    "<victim%elsewhere.test@[127.0.0.1]>",
    "<victim%elsewhere.test@localhost>",
    '<"victim%elsewhere.test"@here.test>',
    "<victim%elsewhere.test%here.test@dept.test>",
    "<victim%elsewhere.test>",
    "<elsewhere.test!victim>",
    "<elsewhere.test!victim@here.test>",
    "<elsewhere.test!victim@dept.test>",
    "<elsewhere.test!victim@[127.0.0.1]>",
    "<here.test!elsewhere.test!victim@here.test>",
    "<@here.test:victim@elsewhere.test>",
    "<@here.test,@dept.test:victim@elsewhere.test>",
    "<@relay.test:victim@elsewhere.test>",
    "<@[127.0.0.1]:victim@elsewhere.test>",
    "<victim@elsewhere.test@here.test>",
    "<victim@elsewhere.test%here.test>",
    "<victim@[127.0.0.1]>",
    "<victim@127.0.0.1>",
    "<victim@[IPv6:::1]>",
    "<victim@[192.0.2.1]>",
    "<victim@relay.test>",
    "<victim@localhost>",
    "<victim>",
    "<victim@sub.here.test>",
    "<victim@xhere.test>",
    "<victim@here.test.elsewhere.test>",
    "<victim@elsewhere.test\\0@here.test>",
    "<victim@elsewhere.test >",
    "< victim@elsewhere.test>",
    "<victim@elsewhere.test> <user@here.test>",
    "<user@here.test>,<victim@elsewhere.test>",
    "<user@here.test,victim@elsewhere.test>",
    "user@here.test victim@elsewhere.test",
    "<victim@elsewhere.test> ORCPT=rfc822;user@here.test",
    "<victim@ｅｌｓｅｗｈｅｒｅ.test>",
    "<victim@elsewhere。test>",
    "victim@elsewhere.test(user@here.test)",
    "<victim@elsewhere.test(@here.test)>",
    '<victim"@here.test"@elsewhere.test>',
    "<victim\t@elsewhere.test>",
    "Victim <victim@elsewhere.test>",
    "<SMTP:victim@elsewhere.test>",
    "<IMCEASMTP-victim+40elsewhere+2Etest@elsewhere.test>",
    "<victim:elsewhere.test@here.test>",
]
"""RCPT's argument; none may be accepted."""

REVERSE_PATHS = [
    "<>",
    "<stranger@outside.test>",
    "<user@here.test>",
    "<postmaster@relay.test>",
    "<root@localhost>",
    "<user@[127.0.0.1]>",
    "<user@dept.test>",
    "<victim@elsewhere.test>",
    "<@here.test:stranger@outside.test>",
    '<"user@here.test"@outside.test>',
]
GREETINGS = ["EHLO here.test", "HELO relay.test", "EHLO localhost", "EHLO [127.0.0.1]"]


class Stranger:
    """A session from an address that has no right here."""

    def __init__(self, server: Posthouse) -> None:
        self._socket = socket.create_connection((ADDRESS, server.port), timeout=20, source_address=(STRANGER, 0))
        self._lines = self._socket.makefile("rb")
        self.reply()

    def reply(self) -> str:
        """The next reply, all its lines joined."""
        lines = []
        while line := self._lines.readline():
            lines.append(line.decode())
            if line[3:4] != b"-":
                break
        return "".join(lines)

    def say(self, line: str) -> str:
        """Sends a line and returns the reply."""
        self._socket.sendall(f"{line}\r\n".encode())
        return self.reply()

    def hand_in(self, subject: str) -> str:
        """The content of a message, and the reply to it."""
        if not self.say("DATA").startswith("354"):
            return ""
        return self.say(f"Subject: {subject}\r\n\r\nrelayed\r\n.")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


@contextlib.contextmanager
def stranger(server: Posthouse) -> Iterator[Stranger]:
    session = Stranger(server)
    try:
        yield session
    finally:
        session.close()


def attempt(server: Posthouse, greeting: str, reverse_path: str, recipient: str) -> tuple[str, str]:
    """The replies to RCPT and, when that was accepted, to the message."""
    with stranger(server) as session:
        session.say(greeting)
        if not session.say(f"MAIL FROM:{reverse_path}").startswith("250"):
            return "", ""
        reply = session.say(f"RCPT TO:{recipient}")
        return reply, session.hand_in(f"{reverse_path} {recipient}") if reply.startswith("2") else ""


def test_no_form_of_address_lets_a_stranger_relay() -> None:
    with postfix_next_hop([], settings=EVERYTHING) as next_hop:
        hop = f"smtp://{next_hop.address}:{next_hop.port}"
        settings = f"""
[relay]
local_domains = ["here.test"]
relay_domains = ["dept.test"]
trusted_networks = ["127.0.0.1"]
{route_to(hop, domain="here.test")}
{route_to(hop)}
"""
        with posthouse(settings) as server:
            accepted = {
                recipient: replies
                for recipient in REFUSED
                if (replies := attempt(server, "EHLO outside.test", "<stranger@outside.test>", recipient))[0][:1]
                not in ("4", "5")
            }
            assert accepted == {}
            for reverse_path in REVERSE_PATHS:
                for greeting in GREETINGS:
                    reply, _ = attempt(server, greeting, reverse_path, f"<{VICTIM}>")
                    assert reply[:1] != "2", (greeting, reverse_path)
            control = attempt(server, "EHLO outside.test", "<stranger@outside.test>", "<user@here.test>")
            assert control[1].startswith("250")
            also = attempt(server, "EHLO outside.test", "<stranger@outside.test>", "<@elsewhere.test:user@dept.test>")
            assert also[1].startswith("250")
            arrived = next_hop.wait_for(2)
            assert sorted(one.forward_path for one in arrived) == ["user@dept.test", "user@here.test"]
            assert [one.reverse_path for one in next_hop.arrived()] == ["stranger@outside.test"] * 2


def test_a_stranger_who_pipelines_past_refusals_gets_nothing_relayed() -> None:
    with postfix_next_hop([], settings=EVERYTHING) as next_hop:
        hop = f"smtp://{next_hop.address}:{next_hop.port}"
        settings = f'[relay]\nlocal_domains = ["here.test"]\n{route_to(hop, domain="here.test")}{route_to(hop)}'
        with posthouse(settings) as server:
            with stranger(server) as session:
                session.say("EHLO outside.test")
                recipients = "".join(
                    f"RCPT TO:{path}\r\n" for path in (f"<{VICTIM}>", "<user@here.test>", f"<other{VICTIM}>")
                )
                session.say(f"MAIL FROM:<s@outside.test>\r\n{recipients}DATA")
                replies = [session.reply() for _ in range(4)]
                assert [reply[:3] for reply in replies] == ["550", "250", "550", "354"]
                assert session.say("Subject: x\r\n\r\nx\r\n.").startswith("250")
            assert [one.forward_path for one in next_hop.wait_for(1)] == ["user@here.test"]
