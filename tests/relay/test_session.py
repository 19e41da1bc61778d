"""Sessions in memory: engine, session, intake and a memory spool, no sockets."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from posthouse.net.server import Peer
from posthouse.policy.facts import Role
from posthouse.policy.rules import compile_rules, with_relay
from posthouse.relay.intake import Intake
from posthouse.relay.session import Desk, Session
from posthouse.smtp.reply import Reply
from posthouse.smtp.server import ServerConnection, ServerSettings, Signal
from posthouse.spool.memory import MemorySpool
from serving import NOW, Kept

RULES: dict[str, Any] = {
    "trusted_networks": ["127.0.0.1"],
    "local_domains": ["here.test"],
    "relay_domains": ["dept.test"],
    "aliases": [("sales@here.test", ["anna@here.test", "boss@far.test"])],
}


class Line:
    """A driver without a socket."""

    def __init__(self, rules: dict[str, Any], role: Role, peer: Peer) -> None:
        self.kept = Kept()
        self.spool = MemorySpool(0, loop=asyncio.get_running_loop(), clock=lambda: NOW)
        intake = Intake(self.spool, self.kept, lambda: NOW)  # type: ignore[arg-type]
        self.desk = Desk(role, "relay.test", "test", intake, compile_rules(**rules), lambda: NOW, most_hops=3)
        self.engine = ServerConnection(ServerSettings("relay.test"))
        self.session = Session(self.desk, self, self.engine)
        self.engine.greet(self.session.connected(peer))
        self.engine.data_to_send()

    def answer(self, reply: Reply) -> None:
        self.engine.reply(reply)

    def pause(self) -> None: ...
    def resume(self) -> None: ...

    async def say(self, octets: bytes) -> str:
        self.engine.receive_data(octets)
        for _ in range(50):
            event = self.engine.next_event()
            if isinstance(event, Signal):
                if event is Signal.PAUSED:
                    await asyncio.sleep(0)
                    continue
                break
            reply = self.session.handle(event)
            if event.needs_reply and reply is not None:
                self.engine.reply(reply)
        return self.engine.data_to_send().decode()

    async def send(
        self, *forward_paths: str, content: bytes = b"Subject: x\r\n\r\nhi\r\n", hello: str = "EHLO c.test"
    ) -> list[str]:
        lines = [hello, "MAIL FROM:<a@b.test>", *(f"RCPT TO:<{path}>" for path in forward_paths), "DATA"]
        replies = [await self.say(line.encode() + b"\r\n") for line in lines]
        if replies[-1].startswith("354"):
            replies.append(await self.say(content + b".\r\n"))
        return replies


STRANGER = Peer("192.0.2.7", 1)
HERE = Peer("127.0.0.1", 1)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20))


def line(peer: Peer, role: Role = Role.RELAY, **rules: Any) -> Line:
    return Line({**RULES, **rules}, role, peer)


@pytest.mark.parametrize(
    ("peer", "role", "path", "kind"),
    [
        (STRANGER, Role.RELAY, "b@here.test", "local-delivery"),
        (STRANGER, Role.RELAY, "b@dept.test", "relay-domain"),
        (HERE, Role.RELAY, "b@far.test", "trusted-network"),
        (Peer("", 0, uid=1000), Role.LOCAL, "b@far.test", "local-user"),
        (STRANGER, Role.RELAY, "postmaster", "local-delivery"),
    ],
)
def test_every_recipient_carries_the_grant_that_let_it_in(peer: Peer, role: Role, path: str, kind: str) -> None:
    async def scene() -> None:
        served = line(peer, role)
        assert (await served.send(path))[-1].startswith("250 2.0.0")
        ((envelope, _),) = served.kept.messages
        assert [recipient.grant.kind for recipient in envelope.recipients] == [kind]
        assert envelope.recipients[0].grant.reason.words

    run(scene)


def test_a_stranger_may_not_relay_and_nothing_is_queued() -> None:
    async def scene() -> None:
        served = line(STRANGER)
        replies = await served.send("b@far.test")
        assert replies[2].startswith("550 5.7.1")
        assert replies[3].startswith(("503", "554"))
        assert served.kept.messages == []
        assert list(served.spool.refusals) == [("192.0.2.7", "", "relay-denied")]

    run(scene)


def test_an_unknown_address_after_proxy_grants_nothing() -> None:
    async def scene() -> None:
        served = line(Peer("127.0.0.1", 1, is_address_known=False))
        replies = await served.send("b@far.test")
        assert replies[2].startswith(("550 5.7.1", "450", "451"))
        assert served.kept.messages == []

    run(scene)


def test_an_alias_stands_for_its_targets_each_with_its_grant() -> None:
    async def scene() -> None:
        served = line(STRANGER)
        await served.send("sales@here.test", "anna@here.test")
        ((envelope, _),) = served.kept.messages
        assert [(str(r.forward_path), r.grant.kind.value) for r in envelope.recipients] == [
            ("anna@here.test", "local-delivery"),
            ("boss@far.test", "forwarding"),
        ]

    run(scene)


def test_relay_off_counts_at_once_even_within_a_session() -> None:
    async def scene() -> None:
        served = line(HERE)
        await served.say(b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\n")
        assert (await served.say(b"RCPT TO:<b@far.test>\r\n")).startswith("250")
        served.desk.rules = with_relay(served.desk.rules, enabled=False)
        assert (await served.say(b"RCPT TO:<c@far.test>\r\n")).startswith("450 4.7.1")
        assert (await served.say(b"RCPT TO:<c@here.test>\r\n")).startswith("250")

    run(scene)


def test_mail_that_has_gone_in_circles_is_refused() -> None:
    async def scene() -> None:
        served = line(HERE)
        hops = b"Received: from a by b;\r\n\tFri, 1 Jan 2027 00:00:00 +0000\r\n" * 3
        assert (await served.send("b@far.test", content=hops + b"\r\nhi\r\n"))[-1].startswith("554 5.4.6")
        assert served.kept.messages == []

    run(scene)


def test_the_trace_field_tells_how_the_mail_came() -> None:
    async def scene() -> None:
        served = line(HERE)
        await served.send("b@far.test")
        await served.send("b@far.test", "c@far.test", hello="HELO old.test")
        first, second = (message.trace for _, message in served.kept.messages)
        assert b"from c.test ([127.0.0.1])" in first
        assert b" with ESMTP id " in first
        assert b"for <b@far.test>" in first
        assert b" with SMTP id " in second
        assert b"for <" not in second  # RFC 5321 7.6: more than one recipient would disclose the others

    run(scene)


def test_a_recipient_named_twice_is_sent_to_once() -> None:
    async def scene() -> None:
        served = line(HERE)
        await served.send("b@far.test", "b@far.test", "B@FAR.test")
        ((envelope, _),) = served.kept.messages
        assert len(envelope.recipients) == 2  # a local part's case is its host's business (RFC 5321 2.4)

    run(scene)


def test_more_than_a_hundred_recipients_of_a_stranger_get_452() -> None:
    async def scene() -> None:
        served = line(STRANGER)
        replies = await served.send(*(f"b{n}@here.test" for n in range(102)))
        assert [reply[:9] for reply in replies[2:104]] == ["250 2.1.5"] * 100 + ["452 4.5.3"] * 2
        assert len(served.kept.messages[0][0].recipients) == 100

    run(scene)


def test_a_notice_about_an_alias_will_name_what_the_sender_wrote() -> None:
    async def scene() -> None:
        served = line(STRANGER)
        await served.send("sales@here.test")
        ((envelope, _),) = served.kept.messages
        assert {recipient.original_recipient for recipient in envelope.recipients} == {"rfc822;sales@here.test"}

    run(scene)


def test_strangers_hear_their_limits_and_who_may_relay_hears_his() -> None:
    async def scene() -> None:
        stranger, trusted = line(STRANGER), line(HERE)
        for served in (stranger, trusted):
            served.desk.most_messages = 1
        stranger.session.connected(STRANGER)
        trusted.session.connected(HERE)
        assert "LIMITS MAILMAX=1 RCPTMAX=100" in await stranger.say(b"EHLO c.test\r\n")
        assert "LIMITS RCPTMAX=1000" in await trusted.say(b"EHLO c.test\r\n")
        for served, last in ((stranger, "421"), (trusted, "250")):
            await served.send("b@here.test")
            assert (await served.say(b"MAIL FROM:<a@b.test>\r\n")).startswith(last)

    run(scene)
